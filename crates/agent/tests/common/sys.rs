//! Leaving the machine's namespaces, for tests that change what belongs to a namespace.

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `test` on a thread with its own network and host name; both go with the thread.
pub(crate) fn in_own_namespaces<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only UnshareFlags::FILES is unsafe.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWUTS) }.unwrap();
            test()
        });
        thread.join().unwrap()
    })
}
