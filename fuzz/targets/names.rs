//! What names something: ids, names of snapshots and keys, queries. What is taken is what was sent, and safe as one
//! component of a path.
#![no_main]

use std::fmt::Display;
use std::path::{Component, Path};
use std::str::FromStr;

use manta_api::{SandboxId, SnapshotId};

libfuzzer_sys::fuzz_target!(|text: &str| {
    id::<SandboxId>(text, "sb-");
    id::<SnapshotId>(text, "snap-");
    manta_engine::fuzzing::snapshot_name(text);
    manta_server::fuzzing::key_name(text);
    manta_server::fuzzing::query(text);
});

fn id<T: FromStr + Display>(text: &str, prefix: &str) {
    let Ok(id) = text.parse::<T>() else { return };
    assert_eq!(id.to_string(), text);
    let digits = text.strip_prefix(prefix).expect("its prefix");
    assert!(digits.len() == 20 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')));
    let components: Vec<_> = Path::new(text).components().collect();
    assert_eq!(components, [Component::Normal(text.as_ref())]);
}
