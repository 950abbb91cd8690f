//! A golden snapshot made once, for all servers of the tests: making one takes seconds, and few tests are
//! about that. Kept in the build directory; a server that finds another kernel, agent or VMM makes its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::server::Server;

/// What of a work directory holds the golden snapshot, and what spares hashing the artifacts again.
const LENT: [&str; 2] = ["golden", "hashes.json"];

/// Gives the new work directory `to` the golden snapshot.
pub(crate) fn lend(to: &Path) {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let parent =
            std::env::var_os("MANTA_TEST_WORK_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let dir = Path::new(&parent).join("golden");
        fs::create_dir_all(&dir).expect("a directory for the golden snapshot");
        let mut server = Server::making_golden(&dir);
        server.stop();
        dir.join("work")
    });
    fs::create_dir_all(to).expect("a work directory");
    for name in LENT {
        copy(&made.join(name), &to.join(name));
    }
}

/// By hard links where possible: the files of a snapshot never change.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).expect("a directory");
        for entry in fs::read_dir(from).expect("list the golden snapshot").flatten() {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
        let permissions = fs::metadata(from).expect("its permissions").permissions();
        fs::set_permissions(to, permissions).expect("set them");
    } else if fs::hard_link(from, to).is_err() {
        manta_host::disk::clone_file(from, to, manta_host::disk::CloneMode::Auto)
            .expect("copy the golden snapshot");
        let permissions = fs::metadata(from).expect("its permissions").permissions();
        fs::set_permissions(to, permissions).expect("set them");
    }
}
