//! Debian's backports suite as a source of QEMU on Debian 12: one sources entry and one pin of our own,
//! made from the machine's existing Debian source, so that mirrors and keys stay what its owner chose.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The entry this module owns.
pub(crate) const SOURCES: &str = "/etc/apt/sources.list.d/manta-backports.sources";
/// The pin this module owns: below what is installed and what the main suites offer.
pub(crate) const PREFERENCES: &str = "/etc/apt/preferences.d/manta-backports";

/// Where a suite comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The mirror's addresses, separated by blanks.
    pub(crate) uris: String,
    /// The keyring or key ids that sign it; apt's defaults when absent.
    pub(crate) signed_by: Option<String>,
}

/// Makes the entry and the pin; returns the suite's name.
pub(super) fn ensure() -> Result<String> {
    let release = codename()?;
    let suite = format!("{release}-backports");
    let source = of_machine(&release)?.with_context(|| {
        format!("no source for Debian's {release} in /etc/apt: add {suite} or install QEMU 8.2 by hand")
    })?;
    let signed_by = source.signed_by.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
    let entry = format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{signed_by}", source.uris);
    let pin = format!("Package: *\nPin: release n={suite}\nPin-Priority: 100\n");
    for (path, text) in [(PREFERENCES, pin), (SOURCES, entry)] {
        fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(suite)
}

/// The Debian release of this machine, as in `bookworm`.
pub(crate) fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    match (value("ID").as_deref(), value("VERSION_CODENAME")) {
        (Some("debian"), Some(name)) => Ok(name),
        (id, _) => bail!("this step knows only Debian; this machine runs {}", id.unwrap_or("something else")),
    }
}

/// The machine's own source of a suite, from all of apt's files.
pub(crate) fn of_machine(suite: &str) -> Result<Option<Source>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    let find = |path: &Path| -> Option<Source> {
        let parse = match path.extension()?.to_str()? {
            "sources" => in_deb822,
            "list" => in_one_line,
            _ => return None,
        };
        parse(&fs::read_to_string(path).ok()?, suite)
    };
    Ok(files.iter().find_map(|path| find(path)))
}

/// The source of `suite` in deb822 text.
fn in_deb822(text: &str, suite: &str) -> Option<Source> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).find_map(|stanza| {
        let field = |name: &str| {
            stanza.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let has = |name, word| field(name).is_some_and(|value| value.split_whitespace().any(|w| w == word));
        let off = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        if off || !has("Types", "deb") || !has("Suites", suite) || !has("Components", "main") {
            return None;
        }
        // A key written into the entry itself spans lines; apt's default keyring holds Debian's keys.
        let signed_by = field("Signed-By").filter(|key| !key.is_empty()).map(str::to_owned);
        Some(Source { uris: field("URIs")?.to_owned(), signed_by })
    })
}

/// The source of `suite` in the one-line format: `deb [options] uri suite component…`.
fn in_one_line(text: &str, suite: &str) -> Option<Source> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, named) = (words.next()?, words.next()?);
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        (named == suite && words.any(|component| component == "main"))
            .then(|| Source { uris: uri.to_owned(), signed_by: signed_by.map(str::to_owned) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deb822_source_is_found_by_its_suite() {
        let text = "Types: deb\n# a note\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://mirror.example/security\n\
                    Suites: bookworm-security\nComponents: main\n";
        let main = Source { uris: "http://mirror.example/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(in_deb822(text, "bookworm"), Some(main));
        let security = Source { uris: "http://mirror.example/security".into(), signed_by: None };
        assert_eq!(in_deb822(text, "bookworm-security"), Some(security));
        assert_eq!(in_deb822(text, "trixie"), None);
    }

    #[test]
    fn disabled_and_source_only_entries_do_not_count() {
        let text = "Types: deb-src\nURIs: http://a.example\nSuites: bookworm\nComponents: main\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://b.example\nSuites: bookworm\nComponents: main\n";
        assert_eq!(in_deb822(text, "bookworm"), None);
    }

    #[test]
    fn a_one_line_source_is_found_with_and_without_options() {
        let text = "# deb http://no.example bookworm main\ndeb-src http://no.example bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib\n\
                    deb http://b.example/debian bookworm-updates main\n";
        let main = Source { uris: "http://a.example/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(in_one_line(text, "bookworm"), Some(main));
        let updates = Source { uris: "http://b.example/debian".into(), signed_by: None };
        assert_eq!(in_one_line(text, "bookworm-updates"), Some(updates));
        assert_eq!(in_one_line(text, "bookworm-backports"), None);
    }
}
