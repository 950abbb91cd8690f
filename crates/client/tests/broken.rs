//! Servers that misbehave on the wire: each gives its own error, in bounded time and memory.

#![expect(clippy::unwrap_used, reason = "Clippy's exemption for tests does not reach their helpers")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use manta_client::{ANSWER_LIMIT, Call, Client, ClientError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

/// One connection: reads the request, then `then` has the stream.
async fn server<F>(then: impl FnOnce(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        then(stream).await;
    });
    address
}

async fn ask(address: SocketAddr, timeout: Duration) -> ClientError {
    let client = Client::new(&format!("http://{address}"), timeout).unwrap();
    client.sandboxes().await.unwrap_err()
}

#[tokio::test]
async fn nobody_listening_is_a_connect_error_at_once() {
    // Bound, so that nobody else gets the port, and not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    let before = Instant::now();
    let error = ask(address, LONG).await;
    assert!(matches!(error, ClientError::Connect { call: Call::Sandboxes, .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("GET /sandboxes: cannot connect to http://{address}"));
    assert!(before.elapsed() < LONG);
}

#[tokio::test]
async fn silence_ends_at_the_time_limit() {
    let address = server(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let error = ask(address, SHORT).await;
    assert!(matches!(error, ClientError::Timeout { call: Call::Sandboxes, timeout: SHORT }), "{error:?}");
    assert_eq!(error.to_string(), "GET /sandboxes: no complete answer within 50ms");
}

#[tokio::test]
async fn the_time_limit_covers_the_body_too() {
    let address = server(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"sandbox").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let error = ask(address, SHORT).await;
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_closed_without_an_answer_is_told_apart_from_none() {
    let address = server(|stream| async move { drop(stream) }).await;
    let error = ask(address, LONG).await;
    assert!(matches!(error, ClientError::Exchange { .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_an_exchange_error() {
    let address = server(|mut stream| async move {
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    })
    .await;
    let error = ask(address, LONG).await;
    assert!(matches!(error, ClientError::Exchange { .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_cut_short_is_not_taken_for_whole() {
    // What did arrive is valid JSON: only the length tells.
    let address = server(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{\"sandboxes\":[]}").await.unwrap();
    })
    .await;
    let error = ask(address, LONG).await;
    assert!(matches!(error, ClientError::Body { status: 200, .. }), "{error:?}");
}

#[tokio::test]
async fn an_endless_body_is_read_up_to_the_limit_only() {
    let address = server(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        // Ends when the client hangs up.
        while stream.write_all(&[b' '; 1 << 16]).await.is_ok() {}
    })
    .await;
    let error = ask(address, LONG).await;
    assert!(matches!(error, ClientError::TooLarge { status: 200, limit: ANSWER_LIMIT, .. }), "{error:?}");
}
