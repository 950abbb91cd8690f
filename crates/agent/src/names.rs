//! Who the guest is: host name, ids and name servers, in the kernel and in the files where programs
//! look for them.
//!
//! Files that differ from clone to clone are in memory, below `/run`, with links to them from `/etc`. On the
//! disk they cost each clone 20 ms under software emulation, and no clone could be made when it is full. They
//! are held open: nothing that users do to their paths makes a clone fail.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use manta_agent_proto::Identity;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::system::sethostname;
use thiserror::Error;

/// Where the files are, below the root.
const DIRECTORY: &str = "run/manta";

/// Longest host name the kernel takes, bytes (`__NEW_UTS_LEN`).
const LONGEST: usize = 64;

/// Where the hyphens of a UUID are.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

/// Host name until the host gives one.
pub(crate) const NOBODY: &str = "sandbox";

/// Begins `/etc/hosts`; the guest's own line follows.
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Longest `/etc/hosts` that is read, bytes; what users made longer is theirs.
const LONGEST_HOSTS: u64 = 1 << 20;

/// What could not be set.
#[derive(Debug, Error)]
pub enum NamesError {
    /// It would not be one word in the files it goes into.
    #[error("{0:?} is not a host name")]
    BadName(String),
    /// Not 32 lower-case hexadecimal digits.
    #[error("{0:?} is not a machine id")]
    BadMachineId(String),
    /// Not a UUID in lower case.
    #[error("{0:?} is not a boot id")]
    BadBootId(String),
    /// The kernel's host name.
    #[error("cannot set the host name")]
    HostName(#[source] Errno),
    /// A file, or the link to it.
    #[error("cannot make {path}")]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The names of one machine.
#[derive(Debug)]
pub struct Names {
    root: PathBuf,
    hostname: File,
    hosts: File,
    machine_id: File,
    boot_id: File,
    /// The line that is in `hosts` because of [`Self::set`].
    hosts_line: Option<String>,
}

impl Names {
    /// Makes the files of a machine that is nobody yet, and links to them in the place of what is in `/etc`
    /// below `root`. That of the boot id, whose content is given, is linked from nowhere.
    ///
    /// # Errors
    /// [`NamesError::Make`].
    pub fn create(root: PathBuf, boot_id: &str) -> Result<Self, NamesError> {
        let directory = root.join(DIRECTORY);
        let made = |path: &Path, result: io::Result<()>| {
            result.map_err(|source| NamesError::Make { path: path.to_owned(), source })
        };
        made(&directory, fs::create_dir(&directory))?;
        for name in ["hostname", "hosts", "machine-id"] {
            let path = root.join("etc").join(name);
            made(&path, link(&path, &format!("../{DIRECTORY}/{name}")))?;
        }
        let file = |name: &str, mode: u32, content: &str| {
            let path = directory.join(name);
            make(&path, mode, content).map_err(|source| NamesError::Make { path, source })
        };
        Ok(Self {
            hostname: file("hostname", 0o644, &[NOBODY, "\n"].concat())?,
            hosts: file("hosts", 0o644, HOSTS)?,
            machine_id: file("machine-id", 0o444, "")?,
            boot_id: file("boot_id", 0o444, boot_id)?,
            hosts_line: None,
            root,
        })
    }

    /// Whether everything could be set.
    ///
    /// # Errors
    /// What is malformed.
    pub fn check(identity: &Identity) -> Result<(), NamesError> {
        let name = &identity.hostname;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || name.len() > LONGEST || !name.bytes().all(fits) {
            return Err(NamesError::BadName(name.clone()));
        }
        let id = &identity.machine_id;
        if id.len() != 32 || !id.bytes().all(is_digit) {
            return Err(NamesError::BadMachineId(id.clone()));
        }
        let id = &identity.boot_id;
        let is_right = |(at, byte)| if HYPHENS.contains(&at) { byte == b'-' } else { is_digit(byte) };
        if id.len() != 36 || !id.bytes().enumerate().all(is_right) {
            return Err(NamesError::BadBootId(id.clone()));
        }
        Ok(())
    }

    /// Sets all but the name servers, as [`Self::check`] found good. Idempotent. What users have added to
    /// `/etc/hosts` stays.
    ///
    /// # Errors
    /// The step that failed.
    pub fn set(&mut self, identity: &Identity) -> Result<(), NamesError> {
        let name = &identity.hostname;
        sethostname(name.as_bytes()).map_err(NamesError::HostName)?;
        let ours = |name: &str, result: io::Result<()>| {
            result.map_err(|source| NamesError::Write { path: self.root.join(DIRECTORY).join(name), source })
        };
        ours("hostname", write(&self.hostname, &[name, "\n"].concat()))?;
        let line = format!("{}\t{name}\n", identity.network.address);
        ours("hosts", set_hosts(&self.hosts, self.hosts_line.as_deref(), &line))?;
        let machine_id = [&identity.machine_id, "\n"].concat();
        ours("machine-id", write(&self.machine_id, &machine_id))?;
        ours("boot_id", write(&self.boot_id, &[&identity.boot_id, "\n"].concat()))?;
        self.hosts_line = Some(line);
        self.set_dbus(&machine_id)
    }

    /// D-Bus may have a file of its own; usually it has a link to the other, or is not there.
    fn set_dbus(&self, machine_id: &str) -> Result<(), NamesError> {
        let path = self.root.join("var/lib/dbus/machine-id");
        // Somebody's FIFO must not block us.
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match open(&path, flags, Mode::empty()) {
            Ok(file) => write(&file.into(), machine_id).map_err(|source| NamesError::Write { path, source }),
            Err(_) => Ok(()),
        }
    }

    /// Writes `/etc/resolv.conf`, also in the place of a link.
    ///
    /// # Errors
    /// [`NamesError::Write`].
    pub fn set_servers(&self, servers: &[Ipv4Addr]) -> Result<(), NamesError> {
        let mut content = String::new();
        for server in servers {
            let _ = writeln!(content, "nameserver {server}"); // writing to a String cannot fail
        }
        let path = self.root.join("etc/resolv.conf");
        let temporary = path.with_added_extension("manta-new");
        fs::write(&temporary, content)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| NamesError::Write { path, source })
    }
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Puts `line` in the place of `old`. A user who has taken that out does not want it.
fn set_hosts(hosts: &File, old: Option<&str>, line: &str) -> io::Result<()> {
    let length = hosts.metadata()?.len();
    if length > LONGEST_HOSTS {
        return Ok(());
    }
    let mut bytes = vec![0; length as usize];
    hosts.read_exact_at(&mut bytes, 0)?;
    let Ok(content) = String::from_utf8(bytes) else { return Ok(()) };
    match old {
        None => write(hosts, &[content.as_str(), line].concat()),
        Some(old) if old != line && content.contains(old) => write(hosts, &content.replacen(old, line, 1)),
        Some(_) => Ok(()),
    }
}

/// In place, and not first emptied: most new contents are as long as the old.
fn write(file: &File, content: &str) -> io::Result<()> {
    file.write_all_at(content.as_bytes(), 0)?;
    let length = content.len() as u64;
    if file.metadata()?.len() == length { Ok(()) } else { file.set_len(length) }
}

fn make(path: &Path, mode: u32, content: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).mode(mode).open(path)?;
    write(&file, content)?;
    Ok(file)
}

fn link(path: &Path, target: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(target, path),
    }
}
