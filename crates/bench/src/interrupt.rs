//! Ctrl-C and SIGTERM, counted: the first ends the run in order, the second at once.

use std::convert::Infallible;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How often the run was asked to end.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(watch::Receiver<u32>);

/// Where the asking comes from.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    count: watch::Sender<u32>,
}

impl Signals {
    /// From here on neither signal ends the process by itself.
    pub(crate) fn catch() -> io::Result<(Self, Interrupt)> {
        let (count, receiver) = watch::channel(0);
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok((Self { interrupt, terminate, count }, Interrupt(receiver)))
    }

    /// Passes them on, and tells `first` of the first.
    pub(crate) async fn forward(mut self, first: impl Fn()) -> Infallible {
        loop {
            tokio::select! {
                Some(()) = self.interrupt.recv() => {}
                Some(()) = self.terminate.recv() => {}
                else => std::future::pending().await,
            }
            if *self.count.borrow() == 0 {
                first();
            }
            self.count.send_modify(|count| *count += 1);
        }
    }
}

impl Interrupt {
    pub(crate) fn is_set(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// `work` to its end; `None` as soon as the run was asked `times` times to end, be it before.
    pub(crate) async fn unless<T>(&self, times: u32, work: impl Future<Output = T>) -> Option<T> {
        let mut count = self.0.clone();
        tokio::select! {
            biased;
            Ok(_) = count.wait_for(|count| *count >= times) => None,
            done = work => Some(done),
        }
    }
}
