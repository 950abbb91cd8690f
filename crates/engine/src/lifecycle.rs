//! The life of a sandbox, and what may be asked of it when.
//!
//! ```text
//!              create()            destroy()/expiry/shutdown
//!   Creating ──────────▶ Running ─────────────────────▶ Stopping ──▶ Stopped
//!      │                    │                               ▲
//!      │ boot failed        │ microVM or agent died         │ destroy()/expiry
//!      ▼                    ▼                               │
//!   Stopped              Failed ────────────────────────────┘
//! ```
//!
//! - Creating → Running: the agent answered and has adopted the guest.
//! - Creating → Stopped: it did not; the creator gets the error, nothing is left.
//! - Running → Failed: the microVM ended on its own. What it used on the host is released at once;
//!   the entry stays, with the reason, until it is destroyed.
//! - Running/Failed → Stopping → Stopped: destroyed by request, at the end of its lifetime, or with the server. Running
//!   commands may drain first.

use manta_api::SandboxState;

/// Whether in this state a command may be run, a snapshot be taken, the lifetime be set. Destroying is allowed in every state: it is idempotent.
pub(crate) fn takes_commands(state: SandboxState) -> bool {
    state == SandboxState::Running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_sandbox_takes_commands() {
        use SandboxState::{Creating, Failed, Running, Stopped, Stopping};
        let table =
            [(Creating, false), (Running, true), (Stopping, false), (Stopped, false), (Failed, false)];
        for (state, expected) in table {
            assert_eq!(takes_commands(state), expected, "{state:?}");
        }
    }
}
