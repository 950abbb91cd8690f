//! What must hold for any manifest and any name. Called by the fuzz targets `manifests` and `names`, and in tests.

use super::manifest::Manifest;
use super::name::SnapshotName;

/// A text that is a manifest says the same when it is written again.
///
/// # Panics
/// When it does not.
pub fn manifest(text: &[u8]) {
    if let Ok(manifest) = Manifest::parse(text) {
        let again = serde_json::to_vec_pretty(&manifest).expect("a manifest can be written");
        assert_eq!(Manifest::parse(&again).expect("and read again"), manifest);
    }
}

/// A text that is a name is that name, and needs no quoting anywhere.
///
/// # Panics
/// When it is not.
pub fn snapshot_name(text: &str) {
    if let Ok(name) = text.parse::<SnapshotName>() {
        assert_eq!(name.to_string(), text);
        assert!((1..=64).contains(&text.len()) && !text.starts_with(['.', '-', '_']));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshots::testing;

    proptest! {
        #[test]
        fn a_manifest_changed_anywhere_is_none_or_says_the_same_again(at in any::<prop::sample::Index>(), to: u8) {
            let mut text = serde_json::to_vec(&testing::manifest("snap-00000000000000000001")).unwrap();
            let at = at.index(text.len());
            text[at] = to;
            manifest(&text);
        }

        #[test]
        fn a_name_is_a_name(text in "[a-zA-Z0-9._-]{0,66}|\\PC*") {
            snapshot_name(&text);
        }
    }
}
