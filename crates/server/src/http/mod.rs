//! Connections: where they come from, what each may cost, and how they end. Knows no route.

mod connection;
mod stream;
#[cfg(test)]
mod tests;
mod unix;

#[cfg(any(test, fuzzing))]
pub(crate) use connection::connection;
pub(crate) use connection::{BodyLimits, Limits, serve};
pub(crate) use unix::UnixSocket;
pub use unix::UnixSocketError;
