//! Ids come from outside and end up in paths: what parses is harmless, and nothing else parses.

use std::path::{Component, Path};

use manta_api::{SandboxId, SnapshotId};
use proptest::prelude::*;

proptest! {
    #[test]
    fn an_id_of_random_bytes_survives_text_and_json(bytes: [u8; 10]) {
        let id = SandboxId::from_random(bytes);
        prop_assert_eq!(&id.to_string().parse::<SandboxId>().unwrap(), &id);
        let json = serde_json::to_string(&id).unwrap();
        prop_assert_eq!(&json, &format!("\"{id}\""));
        prop_assert_eq!(&serde_json::from_str::<SandboxId>(&json).unwrap(), &id);

        let id = SnapshotId::from_random(bytes);
        prop_assert_eq!(&id.to_string().parse::<SnapshotId>().unwrap(), &id);
        let json = serde_json::to_string(&id).unwrap();
        prop_assert_eq!(&json, &format!("\"{id}\""));
        prop_assert_eq!(&serde_json::from_str::<SnapshotId>(&json).unwrap(), &id);
    }

    #[test]
    fn an_id_of_one_kind_is_none_of_the_other(bytes: [u8; 10]) {
        prop_assert!(SandboxId::from_random(bytes).as_str().parse::<SnapshotId>().is_err());
        prop_assert!(SnapshotId::from_random(bytes).as_str().parse::<SandboxId>().is_err());
    }

    #[test]
    fn different_bytes_give_different_ids(one: [u8; 10], other: [u8; 10]) {
        prop_assert_eq!(one == other, SandboxId::from_random(one) == SandboxId::from_random(other));
    }

    #[test]
    fn what_parses_is_one_plain_path_component(
        text in "(sb-|snap-)?([0-9a-f]{20}|[0-9a-fA-F./\\\\\\-]{0,24})|\\PC*",
    ) {
        let sandbox = text.parse::<SandboxId>().map(String::from);
        let snapshot = text.parse::<SnapshotId>().map(String::from);
        if let Ok(id) = sandbox.or(snapshot) {
            prop_assert_eq!(&id, &text);
            let components: Vec<_> = Path::new(&id).components().collect();
            prop_assert_eq!(components, [Component::Normal(text.as_ref())]);
            prop_assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        }
    }

    #[test]
    fn one_changed_character_is_an_id_only_if_it_is_a_digit(
        bytes: [u8; 10],
        at in 0..23_usize,
        to in any::<char>(),
    ) {
        let mut text: Vec<char> = SandboxId::from_random(bytes).as_str().chars().collect();
        let same = text[at] == to;
        text[at] = to;
        let digit = at >= 3 && matches!(to, '0'..='9' | 'a'..='f');
        let parsed = text.iter().collect::<String>().parse::<SandboxId>();
        prop_assert_eq!(parsed.is_ok(), same || digit);
    }
}

#[test]
fn near_misses_are_refused_in_text_and_in_json() {
    for text in [
        "",
        "sb-",
        "0123456789abcdef0123",
        "sb-0123456789abcdef012",
        "sb-0123456789abcdef01234",
        "sb-0123456789ABCDEF0123",
        "SB-0123456789abcdef0123",
        "sb-0123456789abcdef012g",
        "sb_0123456789abcdef0123",
        " sb-0123456789abcdef0123",
        "sb-0123456789abcdef0123\n",
        "sb-0123456789abcdef0123\0",
        "sb-../../../../../etc/a",
        "sb-０123456789abcdef01",
    ] {
        assert!(text.parse::<SandboxId>().is_err(), "{text:?}");
        let json = serde_json::to_string(text).unwrap();
        let error = serde_json::from_str::<SandboxId>(&json).unwrap_err().to_string();
        assert!(error.contains("20 lower-case hexadecimal digits"), "{error}");
    }
    assert!(serde_json::from_str::<SandboxId>("7").is_err());
    for text in ["", "snap-", "0123456789abcdef0123", "snap-0123456789abcdef012", "snap-0123456789ABCDEF0123"]
    {
        let error = text.parse::<SnapshotId>().unwrap_err().to_string();
        let said = "not a snapshot id: expected \"snap-\" and 20 lower-case hexadecimal digits";
        assert_eq!(error, said, "{text:?}");
    }
}
