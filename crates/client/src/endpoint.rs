//! The address of a server, parsed once.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::InvalidUri;
use thiserror::Error;

/// `http://host[:port]`, or with `https`, nothing after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint(String);

/// Why a text is not the address of a server.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// Not a URL at all.
    #[error("not a URL")]
    Url(#[source] InvalidUri),
    /// Another scheme, or none.
    #[error("it must begin with http:// or https://")]
    Scheme,
    /// No host between `://` and the port or the end.
    #[error("it names no host")]
    Host,
    /// A port that is none, or is over 65535.
    #[error("{0:?} is not a port")]
    Port(String),
    /// A user name: the interface has none, and would drop it silently.
    #[error("it must not carry a user name")]
    User,
    /// Something after the host: routes begin at the root.
    #[error("it must end after host and port")]
    Path,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: Uri = text.parse().map_err(EndpointError::Url)?;
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
        let scheme = scheme.ok_or(EndpointError::Scheme)?;
        let authority = uri.authority().ok_or(EndpointError::Host)?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::User);
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(EndpointError::Host);
        }
        let rest = &authority.as_str()[host.len()..];
        let port = rest.strip_prefix(':').unwrap_or(rest);
        if !rest.is_empty() && port.parse::<u16>().is_err() {
            return Err(EndpointError::Port(port.to_owned()));
        }
        // `Uri` drops a fragment without a word, hence the look at the text itself.
        if uri.path() != "/" || uri.query().is_some() || text.contains('#') {
            return Err(EndpointError::Path);
        }
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

impl Endpoint {
    pub(crate) fn is_https(&self) -> bool {
        self.0.starts_with("https:")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_server_is_a_host_and_perhaps_a_port() {
        for (text, parsed) in [
            ("http://localhost:8080", "http://localhost:8080"),
            ("http://localhost:8080/", "http://localhost:8080"),
            ("http://127.0.0.1", "http://127.0.0.1"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("https://localhost:8443", "https://localhost:8443"),
            ("HTTP://sandboxes.example:65535", "http://sandboxes.example:65535"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), parsed, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_named() {
        for (text, wrong) in [
            ("", "not a URL"),
            ("http://", "not a URL"),
            ("http://a b", "not a URL"),
            ("localhost:8080", "it must begin with http:// or https://"),
            ("/create", "it must begin with http:// or https://"),
            ("ftp://localhost:8080", "it must begin with http:// or https://"),
            ("unix:///run/manta.sock", "not a URL"),
            ("http://:8080", "it names no host"),
            ("http://localhost:", "\"\" is not a port"),
            ("http://localhost:65536", "\"65536\" is not a port"),
            ("http://me:secret@localhost:8080", "it must not carry a user name"),
            ("http://localhost:8080/v1", "it must end after host and port"),
            ("http://localhost:8080/?x=1", "it must end after host and port"),
            ("http://localhost:8080#x", "it must end after host and port"),
        ] {
            assert_eq!(text.parse::<Endpoint>().map_err(|e| e.to_string()), Err(wrong.to_owned()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_gives_addresses_of_routes(text in "(https?://)?\\PC{0,40}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                let route: Uri = format!("{endpoint}/create").parse().unwrap();
                prop_assert_eq!(route.path(), "/create");
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
            }
        }
    }
}
