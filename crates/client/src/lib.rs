//! A typed client of Manta's HTTP interface. It sends each request once and never decides to repeat
//! one: what a failure means is the caller's to judge.

mod call;
mod client;
mod endpoint;
mod error;
mod key;
mod timing;
mod trust;

pub use call::Call;
pub use client::{ANSWER_LIMIT, Client, Created};
pub use endpoint::EndpointError;
pub use error::ClientError;
pub use key::ApiKey;
pub use timing::ServerTiming;
pub use trust::TrustError;
