//! The least HTTP/1.1 that `up` needs to talk to the server it has started: one request a connection, JSON.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Sends one request and returns the answer's body; an answer other than 2xx is an error.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
    timeout: Duration,
) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let key = std::env::var("MANTA_API_KEY");
    let key = key.map_or(String::new(), |key| format!("Authorization: Bearer {}\r\n", key.trim()));
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n{key}\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{method} {path} was not answered"))?;
    parse(&answer).with_context(|| format!("{method} {path}"))
}

fn parse(answer: &str) -> Result<Value> {
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no HTTP status")?;
    if !status.starts_with('2') {
        bail!("the server answered {status}: {body}");
    }
    serde_json::from_str(body).with_context(|| format!("the server's answer is not JSON: {body}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_body_or_an_error_with_it() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"a\": 1}\n";
        assert_eq!(parse(ok).unwrap()["a"], 1);
        let full = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"code\":\"host_full\"}";
        assert!(parse(full).unwrap_err().to_string().contains("host_full"));
        assert!(parse("SSH-2.0-OpenSSH").is_err());
    }
}
