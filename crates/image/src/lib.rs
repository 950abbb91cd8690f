//! Makes what a guest consists of: its kernel, its root file system, its agent (`manta image build`).
//!
//! The recipes are data in `guest/`, embedded here, so that the `manta` binary needs no checkout. Each
//! artifact is named in a cache by the hash of all that went into it, and made only when the cache does not
//! have it. Nothing here knows how a VM is started.

mod build;
mod cache;
mod cli;
mod command;
mod elf;
mod error;
mod ext4;
mod hash;
mod interrupt;
mod kconfig;
mod kernel;
mod manifest;
mod place;
mod progress;
mod rootfs;
mod tree;

pub use build::{Artifacts, BuildOptions, DEBIAN_PACKAGES, build};
pub use cache::default_cache_dir;
pub use cli::{ImageArgs, main};
pub use error::ImageError;
pub use progress::Progress;
