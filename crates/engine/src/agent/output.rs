//! Output of a command, bounded.

/// What a command printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Standard output was longer than allowed.
    pub stdout_truncated: bool,
    /// Standard error was longer than allowed.
    pub stderr_truncated: bool,
}

/// A command that ran to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it printed.
    pub output: Output,
    /// Exit status; 128 + n after signal n; 126, 127 when it could not be started.
    pub exit_code: i32,
    /// As the guest measured it, microseconds.
    pub duration_us: u64,
}

/// Appends to `kept` what fits below `limit`; true when something had to be dropped.
pub(crate) fn append_within(kept: &mut Vec<u8>, bytes: &[u8], limit: u64) -> bool {
    let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(kept.len());
    let fits = room.min(bytes.len());
    kept.extend_from_slice(&bytes[..fits]);
    fits < bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_stops_exactly_at_the_limit_and_says_so() {
        let mut kept = Vec::new();
        assert!(!append_within(&mut kept, b"abc", 5));
        assert!(!append_within(&mut kept, b"de", 5));
        assert!(append_within(&mut kept, b"f", 5));
        assert_eq!(kept, b"abcde");
    }
}
