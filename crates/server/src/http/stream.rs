//! A stream whose peer has to take what is written to it: a client that does not read its answer is cut off. Also where
//! TLS is in between, which takes what is written before the peer does: only what was flushed was taken.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// From the first byte that finds no room to the end of the flush that follows, a time limit runs.
#[derive(Debug)]
pub(crate) struct LimitedWrites<S> {
    stream: S,
    limit: Duration,
    /// Runs while something is left that found no room.
    deadline: Option<Pin<Box<Sleep>>>,
    writing: Arc<AtomicBool>,
}

impl<S> LimitedWrites<S> {
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, deadline: None, writing: Arc::default() }
    }

    /// Tells whether something that was written is not flushed yet.
    pub(crate) fn writing(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.writing)
    }

    /// Of `wanted` bytes some were written, or none yet.
    fn account(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.writing.store(true, Ordering::Relaxed);
        match &written {
            Poll::Ready(Ok(n)) if *n < wanted => drop(self.deadline()),
            Poll::Ready(_) => {}
            Poll::Pending => return self.overdue(cx),
        }
        written
    }

    /// What was written was taken, or not yet.
    fn flushed(&mut self, cx: &mut Context<'_>, flushed: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        ready!(if flushed.is_pending() { self.overdue(cx) } else { flushed })?;
        self.deadline = None;
        self.writing.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn deadline(&mut self) -> Pin<&mut Sleep> {
        self.deadline.get_or_insert_with(|| Box::pin(sleep(self.limit))).as_mut()
    }

    /// Nothing more is taken now: fails when that has lasted too long.
    fn overdue<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LimitedWrites<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LimitedWrites<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.account(cx, buf.len(), written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.account(cx, wanted, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.flushed(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.flushed(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_cut_off_and_who_reads_slowly_but_in_time_is_not() {
        let limit = Duration::from_secs(10);
        let (ours, theirs) = duplex(4);
        let mut stream = LimitedWrites::new(ours, limit);
        let error = stream.write_all(b"an answer").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);

        let (ours, mut theirs) = duplex(4);
        let mut stream = LimitedWrites::new(ours, limit);
        let writing = stream.writing();
        let reader = tokio::spawn(async move {
            let mut read = [0; 9];
            for byte in &mut read {
                sleep(Duration::from_secs(1)).await;
                *byte = theirs.read_u8().await.unwrap();
            }
            read
        });
        stream.write_all(b"an answer").await.unwrap();
        assert!(writing.load(Ordering::Relaxed));
        stream.flush().await.unwrap();
        assert!(!writing.load(Ordering::Relaxed));
        assert_eq!(&reader.await.unwrap(), b"an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_it_byte_by_byte_has_no_more_time_for_all_of_it() {
        let (ours, mut theirs) = duplex(4);
        let mut stream = LimitedWrites::new(ours, Duration::from_secs(10));
        let reader = tokio::spawn(async move {
            loop {
                sleep(Duration::from_secs(4)).await;
                if theirs.read_u8().await.is_err() {
                    return;
                }
            }
        });
        let error = stream.write_all(b"an answer").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(stream);
        reader.await.unwrap();
    }
}
