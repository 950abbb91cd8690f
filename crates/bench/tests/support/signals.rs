//! Real signals to this process, for one test at a time.

use std::sync::{Mutex, PoisonError};

use rustix::process::{Signal, getpid, kill_process};
use tokio::runtime::Builder;

/// A signal reaches every run and every runtime in the process.
static ALONE: Mutex<()> = Mutex::new(());

/// Signals come from within the server's answers, when the run under test has long caught them.
pub(crate) fn send(signal: Signal) {
    kill_process(getpid(), signal).expect("a signal to this process");
}

/// Does `work` while no other test of the file sends or catches signals.
pub(crate) fn alone<T>(work: impl Future<Output = T>) -> T {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}
