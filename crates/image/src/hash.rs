//! Hashes: of a recipe, which names an artifact in the cache before it exists, and of a file's content.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Hashes all that goes into an artifact. Every part has a name and a length, so that no two recipes read
/// alike.
pub(crate) struct RecipeHasher(Sha256);

impl RecipeHasher {
    /// `kind` is the artifact; `version` is raised when the code that makes it changes what comes out.
    pub(crate) fn new(kind: &str, version: u32) -> Self {
        Self(Sha256::new()).with("kind", kind).with("version", &version.to_string())
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        for part in [name, value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The recipe's hash in hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// SHA-256 of a file's content in hexadecimal digits.
pub(crate) fn file_sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_recipe_counts() {
        let base = || RecipeHasher::new("rootfs", 1).with("suite", "bookworm");
        let hashes = [
            base().finish(),
            base().with("package", "git").finish(),
            base().with("package", "gitk").finish(),
            base().with("packageg", "it").finish(),
            RecipeHasher::new("rootfs", 2).with("suite", "bookworm").finish(),
            RecipeHasher::new("kernel", 1).with("suite", "bookworm").finish(),
        ];
        for (i, hash) in hashes.iter().enumerate() {
            assert_eq!(hash.len(), 64);
            assert!(!hashes[..i].contains(hash), "recipe {i} hashes like an earlier one");
        }
        assert_eq!(base().finish(), base().finish());
    }

    #[test]
    fn a_file_hashes_as_sha256sum_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        // FIPS 180-2, appendix B.1
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(file_sha256(file.path()).unwrap(), expected);
    }
}
