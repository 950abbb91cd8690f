//! Requests of web pages: what tells them from others. A browser lets any page that its user visits send requests to
//! the user's own machine, so where no key is asked for these are not let in. Where one is, a page has none to send.

use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri};

/// What is answered to a page of another origin (RFC 6454).
const FOREIGN: &str = "this request comes from a web page, and this server asks for no key; make one with `manta key \
    create` and send it";
/// What is answered to whoever calls the server by a name. A name can be made to lead here by whoever owns it, after
/// its page was loaded; to the browser both are one origin then ("DNS rebinding").
const NAMED: &str = "a server that asks for no key is called by an IP address or as localhost; to call it by another \
    name, make a key with `manta key create` and send it";

/// Whether a request cannot be a foreign page's.
///
/// # Errors
/// What to answer if it can.
pub(crate) fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    // A target in absolute form counts in place of `Host` (RFC 9112, 3.2.2); here both must be fit.
    let target = uri.authority().map(|authority| authority.as_str().as_bytes());
    let sent = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let hosts: Vec<_> = sent.chain(target).filter(|host| !host.is_empty()).collect();
    if !hosts.iter().all(|host| is_here(host)) {
        return Err(NAMED);
    }
    let own = |origin: &HeaderValue| {
        let origin = origin.as_bytes();
        let page = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        page.is_some_and(|page| !hosts.is_empty() && hosts.iter().all(|host| page.eq_ignore_ascii_case(host)))
    };
    if headers.get_all(ORIGIN).iter().all(own) { Ok(()) } else { Err(FOREIGN) }
}

/// Whether nobody can make this host, perhaps with a port, lead elsewhere.
fn is_here(host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    let host = authority.host();
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    !authority.as_str().contains('@')
        && (host.eq_ignore_ascii_case("localhost")
            || host.parse::<std::net::Ipv4Addr>().is_ok()
            || v6.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(target: &str, lines: &[(&'static str, &'static str)]) -> Result<(), &'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        check(&target.parse().unwrap(), &headers)
    }

    #[test]
    fn programs_call_by_address_and_say_no_origin() {
        assert_eq!(answer("/create", &[]), Ok(()));
        for host in
            ["localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:8080", "10.1.2.3:1", "[::1]:8080", ""]
        {
            assert_eq!(answer("/create", &[("host", host)]), Ok(()), "{host:?}");
        }
        assert_eq!(answer("http://127.0.0.1:8080/create", &[("host", "127.0.0.1:8080")]), Ok(()));
    }

    #[test]
    fn a_name_that_somebody_may_own_is_refused() {
        let names = [
            "attacker.example",
            "attacker.example:8080",
            "127.0.0.1.attacker.example",
            "localhost.attacker.example",
            "notlocalhost",
            "127.0.0.1@attacker.example",
            "attacker.example@127.0.0.1",
            "2130706433",
            "[attacker.example]",
            "a b",
        ];
        for host in names {
            assert_eq!(answer("/create", &[("host", host)]), Err(NAMED), "{host:?}");
        }
        assert_eq!(answer("/", &[("host", "127.0.0.1"), ("host", "attacker.example")]), Err(NAMED));
        assert_eq!(answer("http://attacker.example/", &[("host", "127.0.0.1")]), Err(NAMED));
    }

    #[test]
    fn a_page_of_another_origin_is_refused_and_the_servers_own_is_not() {
        let host = ("host", "127.0.0.1:8080");
        for own in ["http://127.0.0.1:8080", "https://127.0.0.1:8080"] {
            assert_eq!(answer("/create", &[host, ("origin", own)]), Ok(()), "{own}");
        }
        let foreign = [
            "null",
            "",
            "http://attacker.example",
            "http://127.0.0.1",
            "http://127.0.0.1:3000",
            "http://localhost:8080",
            "http://127.0.0.1:8080.attacker.example",
            "file://127.0.0.1:8080",
            "127.0.0.1:8080",
        ];
        for origin in foreign {
            assert_eq!(answer("/create", &[host, ("origin", origin)]), Err(FOREIGN), "{origin:?}");
        }
        assert_eq!(answer("/create", &[("origin", "http://127.0.0.1:8080")]), Err(FOREIGN), "no host");
        let both = [host, ("origin", "http://127.0.0.1:8080"), ("origin", "http://attacker.example")];
        assert_eq!(answer("/create", &both), Err(FOREIGN));
    }
}
