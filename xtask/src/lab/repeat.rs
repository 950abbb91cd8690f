//! Which tests of a run in the lab are run once more: those that failed while the emulated processor shut a guest
//! down. A triple fault that nobody caused is what the emulation's rare defects look like from outside; it can be
//! told from what Manta or a guest does by Firecracker's word on it. Decides only; runs nothing.

/// More than so many are not a rare defect.
pub(super) const MOST: usize = 3;

/// Firecracker's word on a processor that KVM reports as shut down (`KVM_EXIT_SHUTDOWN`).
const SHUT_DOWN: &str = "Received KVM_EXIT_SHUTDOWN signal";

/// What the test harness prints, and of it the tests to repeat.
#[derive(Debug, Default)]
pub(super) struct Output(String);

impl Output {
    /// Takes the next line. A run that begins anew replaces the one before it.
    pub(super) fn look(&mut self, line: &str) {
        if line.starts_with("running ") && line.ends_with(" tests") {
            self.0.clear();
        }
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// The tests that failed, if the emulator may be to blame for each of them and they are few; none means that
    /// the run's result stands.
    pub(super) fn to_repeat(&self) -> Vec<String> {
        let failed =
            self.0.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
        let failed: Vec<_> = failed.map(str::to_owned).collect();
        let repeat = failed.len() <= MOST && failed.iter().all(|name| self.printed_by(name).any(is_evidence));
        if repeat { failed } else { Vec::new() }
    }

    /// What a failed test printed, its server's log with it.
    fn printed_by(&self, name: &str) -> impl Iterator<Item = &str> {
        let head = format!("---- {name} stdout ----");
        let printed = self.0.lines().skip_while(move |line| *line != head).skip(1);
        printed.take_while(|line| {
            let next = line.starts_with("---- ") && line.ends_with(" stdout ----");
            !next && *line != "failures:"
        })
    }
}

/// Whether a line of a server's log says that a processor was shut down, and that its guest had said nothing: it
/// would have before a reboot or after a panic, which may end in the same way.
fn is_evidence(line: &str) -> bool {
    let Some((_, words)) = line.split_once("the VMM ended: exit status: 0; console: ") else {
        return false;
    };
    // As in `2026-11-23T18:40:00.123456789 [sb-0123:fc_vcpu 0] Received …`
    let is_firecrackers = |line: &str| line.contains(":fc_vcpu ") || line.contains(":main] ");
    words.contains(SHUT_DOWN) && words.split(" | ").all(is_firecrackers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VCPU: &str = "2026-11-23T18:40:00.123456789 [sb-0a2c:fc_vcpu 0] Received KVM_EXIT_SHUTDOWN signal";
    const MAIN: &str = "2026-11-23T18:40:00.123466789 [sb-0a2c:main] Vmm is stopping.";

    fn log(ended: &str) -> String {
        format!("2026-11-23T18:40:00.2Z  WARN manta_engine::sandbox: the sandbox failed reason=\"{ended}\"")
    }

    fn shut_down() -> String {
        log(&format!("the VMM ended: exit status: 0; console: {VCPU} | {MAIN}"))
    }

    /// As the harness prints a run with these failed tests and what each printed.
    fn output(failed: &[(&str, &str)]) -> Output {
        let mut output = Output::default();
        let mut look = |text: &str| text.lines().for_each(|line| output.look(line));
        look("running 9 tests\ntest api::fine ... ok");
        failed.iter().for_each(|(name, _)| look(&format!("test {name} ... FAILED")));
        look("\nfailures:\n");
        for (name, printed) in failed {
            look(&format!(
                "---- {name} stdout ----\nthread panicked\n--- log of the server ---\n{printed}\n"
            ));
        }
        look("\nfailures:");
        failed.iter().for_each(|(name, _)| look(&format!("    {name}")));
        look("\ntest result: FAILED. 8 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        output
    }

    #[test]
    fn a_test_whose_guest_was_shut_down_is_repeated() {
        let boot = log(&format!("boot failed: no hello; the VMM ended: exit status: 0; console: {VCPU}"));
        let output = output(&[("clones::a", &shut_down()), ("exec::b", &boot)]);
        assert_eq!(output.to_repeat(), ["clones::a", "exec::b"]);
    }

    #[test]
    fn a_failure_without_the_evidence_stands_and_all_others_with_it() {
        let spoken = format!("the VMM ended: exit status: 0; console: reboot: Restarting system | {VCPU}");
        for other in [
            log("the VMM ended: exit status: 0"),
            log(&format!("the VMM ended: exit status: 0; console: {MAIN}")),
            log(&spoken),
            log(&format!("the VMM ended: signal: 9 (SIGKILL); console: {VCPU}")),
            format!("assertion failed: {SHUT_DOWN}"),
            String::new(),
        ] {
            assert!(output(&[("exec::b", &other)]).to_repeat().is_empty(), "{other}");
            assert!(
                output(&[("clones::a", &shut_down()), ("exec::b", &other)]).to_repeat().is_empty(),
                "{other}"
            );
            assert!(
                output(&[("exec::b", &other), ("clones::a", &shut_down())]).to_repeat().is_empty(),
                "{other}"
            );
        }
    }

    #[test]
    fn nothing_is_repeated_when_nothing_failed_or_too_much_did() {
        let printed = shut_down();
        let failed: Vec<_> = ["a", "b", "c", "d"].map(|name| (name, printed.as_str())).into();
        assert!(output(&[]).to_repeat().is_empty());
        assert_eq!(output(&failed[..3]).to_repeat().len(), 3);
        assert!(output(&failed).to_repeat().is_empty());
    }

    #[test]
    fn only_the_last_run_counts() {
        let mut output = output(&[("clones::a", &shut_down())]);
        output.look("running 9 tests");
        output.look("test exec::b ... FAILED");
        assert!(output.to_repeat().is_empty());
    }
}
