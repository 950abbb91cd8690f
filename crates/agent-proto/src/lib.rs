//! What the host and the agent in the guest say to each other, and how it is put on the wire.
//!
//! The same bytes travel over vsock (Firecracker) and a virtio-serial port (QEMU). The port is one
//! endless byte stream with no notion of a connection, and either end can vanish in the middle of a
//! frame; so frames are COBS-encoded and end with a zero byte: whatever was cut off, the next zero
//! byte starts afresh. A session begins with [`Hello`]; requests and what belongs to them carry a
//! stream id chosen by the host, so that many share one connection.
//!
//! A session is more than its link: when that is lost, the host says hello on another one, both ends
//! say how many frames they have received ([`Resume`]), and each sends what the other lacks. Until
//! then frames are kept ([`Outbox`]); [`Frame::Ack`] bounds how many.
//!
//! No I/O here. Neither side trusts the other: every length is bounded by [`MAX_FRAME`].

mod codec;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod message;
mod transit;

use std::time::Duration;

pub use codec::{Decoder, encode};
pub use frame::{Channel, Frame, FrameError};
pub use message::{Adopt, Exec, ExecExit, Hello, Identity, Network, Program, Reply, Request, Resume};
pub use transit::{BogusCount, Inbox, Outbox};

/// Version of everything in this crate. The two ends must agree; see [`Hello`].
pub const PROTOCOL_VERSION: u32 = 3;

/// Name of the virtio-serial port, as the guest finds it in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "manta.agent";

/// vsock port on which the agent listens, and which it calls on the host when it is up, unless told
/// otherwise.
pub const DEFAULT_VSOCK_PORT: u32 = 5252;

/// Kernel command line parameter that tells the agent its vsock port.
pub const VSOCK_PORT_PARAM: &str = "manta.vsock_port";

/// Longest frame before encoding, bytes: room for the longest command line Linux takes (128 KiB for
/// one argument). Longer frames are dropped unread.
pub const MAX_FRAME: usize = 256 * 1024;

/// Most data bytes in one [`Frame::Data`]: small enough that streams interleave.
pub const MAX_DATA: usize = 16 * 1024;

/// Bytes that may be under way on one channel of one stream before the receiver grants more with
/// [`Frame::Credit`]. Both ends start with it.
pub const INITIAL_CREDIT: u32 = 256 * 1024;

/// How long commands run on when the way to their host is lost; then the agent kills them. Several times as long as a
/// host tries to connect again (5 s unless it was told otherwise), and as it takes a host to notice that a silent link
/// is dead (2 s).
pub const LINK_PATIENCE: Duration = Duration::from_secs(20);

/// Most streams open at once in a session; the agent answers more with [`Reply::Failed`].
pub const MAX_STREAMS: usize = 256;
