//! What must hold for any file of keys and any name of one. Called by the fuzz targets `manifests` and `names`, and in
//! tests.

use std::path::Path;

use super::{KeyFile, Keys};

/// A text that is a file of keys lets nobody in who sends what it holds, or nothing.
///
/// # Panics
/// When it does.
pub fn keys(text: &[u8]) {
    let Ok(records) = KeyFile::parse(Path::new("keys.json"), text) else { return };
    let sent: Vec<String> = records
        .iter()
        .flat_map(|key| [key.id.clone(), key.name.clone(), key.last4.clone()])
        .chain([String::new(), String::from_utf8_lossy(text).into_owned()])
        .collect();
    let keys: Keys = records.into_iter().collect();
    assert!(sent.iter().all(|sent| keys.find(sent.as_bytes(), 0).is_none()), "what is kept opens");
}

/// A text that is a key's name needs no quoting anywhere.
///
/// # Panics
/// When it does.
pub fn key_name(text: &str) {
    if Keys::check_name(text, &[]).is_ok() {
        assert!((1..=64).contains(&text.len()) && !text.starts_with("key-"));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyRecord, Secret};

    #[test]
    fn what_a_file_of_keys_holds_opens_nothing() {
        let record = KeyRecord::new(&Secret::new().unwrap(), "ci", 1, None).unwrap();
        let record = serde_json::to_string(&record).unwrap();
        let text = format!("{{\"version\": 1, \"keys\": [{record}]}}");
        assert_eq!(KeyFile::parse(Path::new("keys.json"), text.as_bytes()).unwrap().len(), 1);
        keys(text.as_bytes());
        ["ci", "key-1", "", "a/b"].into_iter().for_each(key_name);
    }
}
