//! How long the steps of a snapshot may take, beside the VMM's own. The limits are generous: what they end is
//! a step that hangs, which would keep the guest paused.

use std::io;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::error::VmmError;
use crate::vmm::BoxFuture;

/// For a step whose length does not depend on the guest.
pub(crate) const STEP: Duration = Duration::from_secs(120);

/// The slowest medium allowed for, bytes per second.
const SLOWEST: u64 = 16 << 20;

/// For a step that copies memory or brings it to the medium, `bytes` at most.
pub(crate) fn for_memory(bytes: u64) -> Duration {
    STEP + Duration::from_secs(bytes.div_ceil(SLOWEST))
}

/// Does work on files off the event loop. Work given up goes on there.
pub(crate) async fn blocking<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match timeout(limit, spawn_blocking(work)).await {
        Ok(done) => done?,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What the caller of a snapshot wants done during the pause; given up after [`STEP`].
///
/// # Errors
/// [`VmmError::WhilePaused`].
pub(crate) async fn while_paused(work: BoxFuture<'_, io::Result<()>>) -> Result<(), VmmError> {
    let done = timeout(STEP, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    done.map_err(VmmError::WhilePaused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_never_ends_is_given_up() {
        let error = while_paused(Box::pin(std::future::pending())).await.unwrap_err();
        let VmmError::WhilePaused(source) = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn more_memory_is_given_more_time() {
        assert_eq!(for_memory(0), STEP);
        assert_eq!(for_memory(16 << 30), STEP + Duration::from_secs(1024));
    }
}
