//! Text from guest and VMM, made fit for messages and logs. The guest is hostile: it may print anything.

/// Most that is kept, bytes.
const LIMIT: usize = 64 * 1024;

/// Most of an answer that goes into a message, characters.
const EXCERPT: usize = 500;

/// Joins what was printed, without the control characters that a terminal would obey; the last of it, if it is
/// too much.
pub(crate) fn printable(parts: &[&str]) -> String {
    let mut text = String::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.extend(part.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')));
    }
    let surplus = text.len().saturating_sub(LIMIT);
    text.split_off(text.ceil_char_boundary(surplus))
}

/// As much of a VMM's own words as goes into a message: it may be in its guest's hands.
pub(crate) fn excerpt(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(EXCERPT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_printable() {
        assert_eq!(excerpt("no\r\n such \x1b[2Jthing"), "no such [2Jthing");
        assert_eq!(excerpt(&"ä".repeat(5000)).chars().count(), EXCERPT);
    }

    #[test]
    fn text_is_printable_and_bounded() {
        assert_eq!(printable(&["a\x1b[2Jb\r\n", "", "c\td"]), "a[2Jb\nc\td");
        assert_eq!(printable(&["a", "b"]), "a\nb");
        let long = "ä".repeat(LIMIT);
        let kept = printable(&["x", &long]);
        assert!(kept.len() <= LIMIT && kept.ends_with('ä'), "{}", kept.len());
        assert_eq!(printable(&[]), "");
    }
}
