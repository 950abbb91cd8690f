//! Settings under `/proc/sys/net`, which are those of the calling thread's network namespace.

use std::fs;
use std::io;

use super::NetError;

/// Reads a setting that is a number; `None` when there is no such setting (no such interface, or a kernel
/// without that protocol).
pub(super) fn read(name: &str) -> Result<Option<i32>, NetError> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                Err(NetError::Sysctl { path, source: io::Error::new(io::ErrorKind::InvalidData, error) })
            }
        },
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NetError::Sysctl { path, source }),
    }
}

/// Writes a setting; tells whether there is one.
pub(super) fn write(name: &str, value: i32) -> Result<bool, NetError> {
    let path = path(name);
    match fs::write(&path, value.to_string()) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(NetError::Sysctl { path, source }),
    }
}

/// The setting that lets packets that arrive on `interface` be forwarded. The kernel looks at no other.
pub(super) fn forwarding(interface: &str) -> String {
    format!("ipv4/conf/{interface}/forwarding")
}

fn path(name: &str) -> String {
    format!("/proc/sys/net/{name}")
}
