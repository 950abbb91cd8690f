//! The entry point. Not Rust's own: before `main` the standard library opens `/dev/null` for each
//! standard descriptor that is missing, and aborts if it cannot. PID 1 starts without any where the
//! kernel has no console, and `/dev` is empty until it has mounted it.

use std::ffi::c_int;

// SAFETY: the C library's start-up calls the symbol `main`; `#![no_main]` leaves it to us, and what
// the signature leaves out (argc, argv) a C `main` may leave out.
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    super::run()
}
