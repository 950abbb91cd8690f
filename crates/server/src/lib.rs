//! The HTTP server: routes, bodies, errors, settings. Handlers are thin; the work is the engine's.

mod args;
mod auth;
mod body;
mod doctor;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod health;
mod http;
mod key_cli;
mod keys;
mod limit_args;
mod listeners;
mod metrics;
mod page;
mod params;
#[cfg(test)]
mod readme;
mod request;
mod routes;
mod run;
mod server_timing;
mod snapshot_cli;
mod stamp;
mod table;
mod telemetry;
mod tls;

pub use args::ServerArgs;
pub use doctor::{DoctorArgs, doctor};
pub use http::UnixSocketError;
pub use key_cli::{KeyArgs, KeyCliError, key};
pub use keys::KeyFileError;
pub use manta_engine::failpoints;
pub use routes::openapi;
pub use run::{ServerError, main};
pub use snapshot_cli::{SnapshotArgs, SnapshotCliError, snapshot};
pub use tls::TlsError;
