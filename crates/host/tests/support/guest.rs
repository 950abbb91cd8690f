//! A pretend guest: a namespace whose `eth0` is joined to a slot's tap frame by frame, as a VMM's virtio-net
//! joins its guest to it. Everything above Ethernet is the real kernel.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use manta_host::{NetNs, NetSlot};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, read, write};

use super::{ip, sys};

/// Legacy `struct virtio_net_hdr`, which is in front of every frame.
const HEADER_BYTES: usize = 10;

/// Its namespace is where a test runs the guest's programs.
pub struct Guest {
    pub netns: NetNs,
    tap: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    relay: Option<JoinHandle<()>>,
}

impl Guest {
    /// Boots a guest in `slot`, which takes and makes offloaded packets or does not.
    pub fn boot(slot: &NetSlot, offloads: bool) -> Self {
        let net = slot.guest();
        let netns = NetNs::create().unwrap();
        let eth0 = netns.run(sys::open_eth0).unwrap();
        let tap = Arc::new(slot.open_tap().unwrap());
        if offloads {
            sys::take_offloads(&eth0);
            sys::take_offloads(&tap);
        }
        let mac = net.mac.map(|byte| format!("{byte:02x}")).join(":");
        netns
            .run(|| {
                ip(&format!("link set eth0 address {mac}"));
                ip(&format!("address add {}/{} dev eth0", net.address, net.prefix_len));
                ip("link set eth0 up");
                ip(&format!("route add default via {}", net.gateway));
            })
            .unwrap();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let relay = std::thread::spawn({
            let (tap, stop) = (Arc::clone(&tap), Arc::clone(&stop));
            move || relay(&eth0, &tap, &stop)
        });
        Self { netns, tap, stop, relay: Some(relay) }
    }

    /// Lets the guest send a frame of any content.
    pub fn send(&self, frame: &[u8]) {
        let bytes = [&[0; HEADER_BYTES], frame].concat();
        assert_eq!(write(&*self.tap, &bytes), Ok(bytes.len()));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        write(&*self.stop, &1u64.to_ne_bytes()).unwrap();
        let ended = self.relay.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking());
    }
}

fn relay(eth0: &OwnedFd, tap: &OwnedFd, stop: &OwnedFd) {
    let mut frame = vec![0; 128 * 1024];
    loop {
        let mut fds = [eth0, tap, stop].map(|fd| PollFd::new(fd, PollFlags::IN));
        poll(&mut fds, None).unwrap();
        if !fds[2].revents().is_empty() {
            return;
        }
        for (from, to) in [(eth0, tap), (tap, eth0)] {
            match read(from, &mut frame[..]) {
                // What a full or refusing device does not take is lost, as on a wire.
                Ok(len) => drop(write(to, &frame[..len])),
                Err(Errno::AGAIN) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}
