//! Whole-system tests: the real server, real microVMs, real network, from outside over HTTP.
//!
//! Natively they run on QEMU, in the emulated KVM host on Firecracker (`cargo xtask lab`). Each test
//! lives in a network namespace of its own, beside a pretend internet in another; nothing reaches
//! the machine's own network. See `harness/` for the settings they take from the environment.

mod harness;

mod api;
mod bad_input;
mod clones;
mod confinement;
mod deaths;
mod endure;
mod events;
mod exec;
mod failpoints;
mod faults;
mod golden;
mod hostile_devices;
mod hostile_network;
mod isolation;
mod keys;
mod lifecycle;
mod lifetimes;
mod limits;
mod metrics;
mod network;
mod prepared;
mod recovery;
mod snapshot_faults;
mod snapshots;
mod supervised;
mod tls;
mod warm;
