//! Kernel configuration files: whether what a fragment asks for is what came out.

/// The options of `fragment` that `config` does not set as asked. An option asked to be `n` may be absent.
pub(crate) fn unmet(fragment: &str, config: &str) -> Vec<String> {
    let wanted = fragment.lines().filter(|line| line.starts_with("CONFIG_"));
    wanted.filter(|line| !is_met(line, config)).map(str::to_owned).collect()
}

fn is_met(wanted: &str, config: &str) -> bool {
    match wanted.strip_suffix("=n") {
        Some(option) => {
            !config.lines().any(|line| line.strip_prefix(option).is_some_and(|rest| rest.starts_with('=')))
        }
        None => config.lines().any(|line| line == wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "CONFIG_NET=y\nCONFIG_NR_CPUS=32\n# CONFIG_WLAN is not set\nCONFIG_NETDEVICES=y\n";

    #[test]
    fn what_is_set_as_asked_is_met() {
        let fragment =
            "# a comment\n\nCONFIG_NET=y\nCONFIG_NR_CPUS=32\nCONFIG_WLAN=n\nCONFIG_NEVER_HEARD_OF=n\n";
        assert_eq!(unmet(fragment, CONFIG), Vec::<String>::new());
    }

    #[test]
    fn a_dropped_a_changed_and_a_forced_option_are_named() {
        let fragment = "CONFIG_WLAN=y\nCONFIG_NR_CPUS=3\nCONFIG_NET=n\nCONFIG_NETDEV=y\n";
        assert_eq!(
            unmet(fragment, CONFIG),
            ["CONFIG_WLAN=y", "CONFIG_NR_CPUS=3", "CONFIG_NET=n", "CONFIG_NETDEV=y"]
        );
    }

    #[test]
    fn an_option_that_only_begins_like_another_is_not_that_one() {
        assert_eq!(unmet("CONFIG_NETDEV=n\n", CONFIG), Vec::<String>::new());
    }
}
