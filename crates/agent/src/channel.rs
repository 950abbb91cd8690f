//! The ways to the host: which of them this machine has, and opening them. Knows no bytes.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use manta_agent_proto::{DEFAULT_VSOCK_PORT, PORT_NAME, VSOCK_PORT_PARAM};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};
use thiserror::Error;

use crate::sys::{CID_ANY, CID_HOST, VsockAddr};
use crate::uevent;

/// virtio device ids, from the virtio specification, section 5.
const VIRTIO_CONSOLE: &str = "0x0003";
const VIRTIO_VSOCK: &str = "0x0013";

/// How long the port may take to be announced by its device, which exists already.
const PORT_WAIT: Duration = Duration::from_secs(10);

/// Open ways to the host. All descriptors are non-blocking.
#[derive(Debug, Default)]
pub struct Channels {
    /// A virtio-serial port.
    pub serial: Option<OwnedFd>,
    /// A socket that accepts connections.
    pub listener: Option<OwnedFd>,
    /// A connection, or one being made.
    pub connection: Option<OwnedFd>,
}

/// Why there is no way to the host.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// Neither device is there.
    #[error("the machine has neither a virtio-serial port nor a vsock device")]
    NoDevice,
    /// The console device has no port of the agent's name.
    #[error("no virtio-serial port is named {PORT_NAME}")]
    NoPort,
    /// A port cannot be opened.
    #[error("cannot open {path}")]
    OpenPort {
        /// The device file.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The port on the kernel's command line is not a number.
    #[error("{VSOCK_PORT_PARAM}={value} is not a port number")]
    PortNumber {
        /// What stands there.
        value: String,
    },
    /// The listening socket.
    #[error("cannot listen on vsock port {port}")]
    Listen {
        /// Where.
        port: u32,
        /// Why.
        source: Errno,
    },
    /// The socket for device events.
    #[error("cannot wait for devices")]
    Events(#[from] Errno),
}

/// Opens every way to the host that this machine has.
///
/// # Errors
/// When there is none, or one that should work does not.
pub fn open() -> Result<Channels, ChannelError> {
    let devices = virtio_devices(Path::new("/sys/bus/virtio/devices"));
    let has = |id: &str| devices.iter().any(|device| device == id);
    let mut channels = Channels::default();
    if has(VIRTIO_VSOCK) {
        let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let port = vsock_port(&command_line)?;
        channels.listener =
            Some(vsock_listener(port).map_err(|source| ChannelError::Listen { port, source })?);
        channels.connection = vsock_connection(port).ok(); // refused if the host does not wait for us
    }
    if has(VIRTIO_CONSOLE) {
        let find = || Ok::<_, Errno>(serial_port(Path::new("/sys/class/virtio-ports")));
        // With another way to the host at hand, the device may just as well be a console.
        let timeout = if channels.listener.is_some() { Duration::ZERO } else { PORT_WAIT };
        if let Some(path) = uevent::wait_for(timeout, find)? {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let port = rustix::fs::open(&path, flags, Mode::empty())
                .map_err(|source| ChannelError::OpenPort { path, source })?;
            channels.serial = Some(port);
        } else if channels.listener.is_none() {
            return Err(ChannelError::NoPort);
        }
    }
    if channels.serial.is_none() && channels.listener.is_none() {
        return Err(ChannelError::NoDevice);
    }
    Ok(channels)
}

/// Device ids of all virtio devices.
fn virtio_devices(bus: &Path) -> Vec<String> {
    let read = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("device")).ok();
    let devices = fs::read_dir(bus).into_iter().flatten().flatten().filter_map(read);
    devices.map(|id| id.trim().to_owned()).collect()
}

/// The device file of the agent's port.
fn serial_port(class: &Path) -> Option<PathBuf> {
    let mut ports = fs::read_dir(class).into_iter().flatten().flatten();
    let ours = ports.find(|port| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    })?;
    Some(Path::new("/dev").join(ours.file_name()))
}

/// The port on the kernel's command line.
fn vsock_port(command_line: &str) -> Result<u32, ChannelError> {
    let mut parameters = command_line.split_whitespace().filter_map(|word| word.split_once('='));
    match parameters.rfind(|(name, _)| *name == VSOCK_PORT_PARAM) {
        None => Ok(DEFAULT_VSOCK_PORT),
        Some((_, value)) => value.parse().map_err(|_| ChannelError::PortNumber { value: value.to_owned() }),
    }
}

fn vsock_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)
}

fn vsock_listener(port: u32) -> Result<OwnedFd, Errno> {
    let socket = vsock_socket()?;
    bind(&socket, &VsockAddr { cid: CID_ANY, port })?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Calls the host, so that it knows without asking that we listen.
fn vsock_connection(port: u32) -> Result<OwnedFd, Errno> {
    let socket = vsock_socket()?;
    match connect(&socket, &VsockAddr { cid: CID_HOST, port }) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vsock_port_comes_from_the_command_line() {
        assert_eq!(vsock_port("console=ttyS0 quiet\n").unwrap(), DEFAULT_VSOCK_PORT);
        assert_eq!(vsock_port("a manta.vsock_port=1 manta.vsock_port=99").unwrap(), 99);
        assert!(
            matches!(vsock_port("manta.vsock_port=x"), Err(ChannelError::PortNumber { value }) if value == "x")
        );
    }

    #[test]
    fn the_port_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        assert_eq!(serial_port(class.path()), None);
        for (port, name) in
            [("vport0p1", "org.qemu.guest_agent.0\n"), ("vport1p1", "manta.agent\n"), ("vport2p0", "")]
        {
            fs::create_dir(class.path().join(port)).unwrap();
            fs::write(class.path().join(port).join("name"), name).unwrap();
        }
        assert_eq!(serial_port(class.path()), Some("/dev/vport1p1".into()));
    }

    #[test]
    fn virtio_devices_are_told_by_their_ids() {
        let bus = tempfile::tempdir().unwrap();
        fs::create_dir(bus.path().join("virtio0")).unwrap();
        fs::write(bus.path().join("virtio0/device"), "0x0013\n").unwrap();
        assert_eq!(virtio_devices(bus.path()), [VIRTIO_VSOCK]);
        assert!(virtio_devices(&bus.path().join("none")).is_empty());
    }
}
