//! HTTP as plain as can be, so that tests can also send what no proper client would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Value,
    /// The body as it came.
    pub(crate) text: String,
}

impl Answer {
    /// The value of a header, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    }

    /// The body, when the status is 200.
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{:#}", self.body);
        self.body
    }

    /// The error's message, when status and code are as expected.
    pub(crate) fn error(self, status: u16, code: &str) -> String {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{:#}", self.body);
        self.body["error"].as_str().expect("an error text").to_owned()
    }
}

/// Sends a request whose connection ends with the answer.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
    limit: Duration,
) -> Answer {
    answer(open(address, method, path, headers, body, limit))
}

/// What comes until the connection ends.
pub(crate) fn answer(mut stream: impl Read) -> Answer {
    let mut answer = Vec::new();
    // A server that refuses a body may close before all of it was read: keep what it said.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert!(!answer.is_empty(), "no answer: {error}");
    }
    let text = String::from_utf8_lossy(&answer);
    let (headers, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not HTTP: {text:?}"));
    let status = headers.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let (text, body) = (body.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null));
    Answer { status, headers: headers.to_lowercase(), body, text }
}

/// Posts to a server that may die meanwhile; what it answered, if it did.
pub(crate) fn attempt(address: SocketAddr, path: &str, body: &Value) -> Option<Answer> {
    let mut stream = begin(address, path, body)?;
    let mut answered = Vec::new();
    stream.read_to_end(&mut answered).ok().filter(|_| answered.windows(4).any(|end| end == b"\r\n\r\n"))?;
    Some(answer(&*answered))
}

/// Begins the same; dropping it hangs up.
pub(crate) fn begin(address: SocketAddr, path: &str, body: &Value) -> Option<TcpStream> {
    let limit = super::scaled(60);
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    Some(stream)
}

/// Sends a request and leaves the answer unread.
pub(crate) fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
    limit: Duration,
) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&address, limit).expect("connect to the server");
    stream.set_read_timeout(Some(limit)).expect("set a time limit");
    stream.set_write_timeout(Some(limit)).expect("set a time limit");
    send(&mut stream, method, path, headers, body);
    stream
}

/// Sends a request on a connection that is there.
pub(crate) fn send(stream: &mut impl Write, method: &str, path: &str, headers: &str, body: &[u8]) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("send the request");
    let _ = stream.write_all(body);
}
