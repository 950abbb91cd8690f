//! Host name and name servers: the kernel's host name, `/etc/hostname`, `/etc/hosts`,
//! `/etc/resolv.conf`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use manta_agent_proto::Network;
use rustix::io::Errno;
use rustix::system::sethostname;
use thiserror::Error;

/// Longest host name the kernel takes, bytes (`__NEW_UTS_LEN`).
const LONGEST: usize = 64;

/// What could not be set.
#[derive(Debug, Error)]
pub enum NamesError {
    /// It would not be one word in the files it goes into.
    #[error("{0:?} is not a host name")]
    BadName(String),
    /// The kernel's host name.
    #[error("cannot set the host name")]
    HostName(#[source] Errno),
    /// One of the files.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Sets the host name and writes the files below `root`, replacing what is there, also a symbolic
/// link. Idempotent.
///
/// # Errors
/// The step that failed.
pub fn configure(root: &Path, network: &Network) -> Result<(), NamesError> {
    let name = &network.hostname;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if name.is_empty() || name.len() > LONGEST || !name.bytes().all(fits) {
        return Err(NamesError::BadName(name.clone()));
    }
    sethostname(name.as_bytes()).map_err(NamesError::HostName)?;
    let mut resolv_conf = String::new();
    for server in &network.dns {
        let _ = writeln!(resolv_conf, "nameserver {server}"); // writing to a String cannot fail
    }
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}\t{name}\n",
        network.address
    );
    replace(&root.join("etc/hostname"), &format!("{name}\n"))?;
    replace(&root.join("etc/hosts"), &hosts)?;
    replace(&root.join("etc/resolv.conf"), &resolv_conf)
}

/// Readers see the old content or the new, never half.
fn replace(path: &Path, content: &str) -> Result<(), NamesError> {
    let temporary = path.with_added_extension("manta-new");
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| NamesError::Write { path: path.to_owned(), source })
}
