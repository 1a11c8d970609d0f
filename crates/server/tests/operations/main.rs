//! Metrics and health, as those who watch a server see them.

#[path = "../agent/mod.rs"]
mod agent;
#[path = "../https/bed.rs"]
#[allow(dead_code, reason = "a part of it is enough here")]
mod bed;
mod health;
mod metrics;

use std::net::SocketAddr;

use agent::soon;
use bytes::Bytes;
use fleethold_server::Config;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Opens both ports.
fn watched(config: &mut Config) {
    config.stats_listen = Some("127.0.0.1:0".to_owned());
    config.health_check_listen = Some("127.0.0.1:0".to_owned());
}

async fn ask(addr: SocketAddr, method: &str, path: &str) -> (StatusCode, String) {
    let tcp = TcpStream::connect(addr).await.unwrap();
    let (mut send, connection) = http1::handshake(TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "server")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = soon("an answer", send.send_request(request)).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}
