//! A stream whose peer has to take what is written to it: a client that does not read its answer is cut off.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// From the first byte that finds no room in the socket to the last one written, a time limit runs.
#[derive(Debug)]
pub(crate) struct LimitedWrites<S> {
    stream: S,
    limit: Duration,
    /// Runs while something is left to be written.
    deadline: Option<Pin<Box<Sleep>>>,
    writing: Arc<AtomicBool>,
}

impl<S> LimitedWrites<S> {
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, deadline: None, writing: Arc::default() }
    }

    /// Tells whether something is left to be written.
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
        let done = matches!(&written, Poll::Ready(Ok(n)) if *n == wanted);
        self.writing.store(!done, Ordering::Relaxed);
        if done {
            self.deadline = None;
            return written;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        if written.is_pending() {
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
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
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
