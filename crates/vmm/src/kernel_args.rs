//! The guest kernel's command line: what both VMMs share.

/// On both: the console on the serial port, only what is important on it, and an end of the VMM instead of a
/// standstill when the kernel panics.
pub(crate) const COMMON: &str = "console=ttyS0 quiet panic=-1";
