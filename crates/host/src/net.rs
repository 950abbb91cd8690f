//! The network of sandboxes on this host: one nftables table, and per sandbox a [`NetSlot`]. All of it by
//! netlink and `/proc/sys` in this process. Does not own what happens inside a guest.
//!
//! ```text
//!  namespace of the slot                            │ namespace of the server
//!                                                   │
//!  guest ── tap0 ─ ingress filter ─ forward ─ SNAT ─ veth0 ══ mt-N ─ forward ─ masquerade ── egress
//!  172.16.0.2  172.16.0.1/30       198.18.x.y+1/31  │  198.18.x.y/31
//! ```
//!
//! Who refuses what:
//! - *ingress of `tap0`*: every frame that is not ARP, or TCP, UDP or ICMP over IPv4 without options, from the guest's
//!   own MAC and address; so IPv6, tunnels, source routes and all rarer protocols. And what exceeds [`NetLimits`].
//! - *namespace*: everything addressed to the namespace itself or sent from within it, but what the kernel has to say
//!   about packets that it could not forward; every connection towards the guest; what belongs to no connection, and
//!   connections in excess of [`NetLimits`].
//! - *table of the host*: all that is not from a slot's own address out of the egress interface to a
//!   destination outside [`ALWAYS_DENIED`]; so also other sandboxes and the host under any of its addresses.
//!
//! Checksums and segmentation: the tap carries a `virtio_net_hdr`, so a guest that negotiated offloads hands
//! over packets without checksums or larger than the MTU, marked as such. The kernel keeps that mark across
//! veth and NAT and completes the packets where they leave for hardware, or for a guest without offloads; no
//! offload needs to be switched off anywhere.

mod addresses;
mod connections;
mod error;
mod host;
mod host_rules;
mod host_table;
mod inside;
mod limits;
mod link;
mod lock;
mod look;
mod nft;
mod slot;
mod slot_rules;
mod sweep;
mod sysctl;
mod tap;
mod watch;

pub use addresses::{ALWAYS_DENIED, GUEST, GUEST_MAC, GuestNet, Ipv4Range, SLOT_RANGE};
pub use error::{NetError, NftError};
pub use host::{HostNetwork, detect_egress, interface_exists};
pub use limits::NetLimits;
pub use lock::ServerLock;
pub use slot::NetSlot;
pub use sweep::sweep_network;
pub use watch::TableWatch;
