//! The servers start, stop, come back, and are shared; the proxy counts and cuts.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use fleethold_testdb::{Cut, Proxy, Server, galera, mariadb, postgres};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[test]
fn private_servers_stop_die_and_come_back_on_their_port() {
    for start in [postgres::private, mariadb::private] {
        let mut server = start(&[]).expect("a server that starts");
        assert!(answers(&server));
        server.stop().expect("it stops");
        assert!(!answers(&server));
        server.start().expect("it starts again");
        assert!(answers(&server));
        server.kill().expect("it ends");
        assert!(!answers(&server));
        server.start().expect("it recovers");
        let directory = server.directory().to_owned();
        drop(server);
        assert!(!directory.exists(), "nothing is left of it");
    }
}

#[test]
fn nodes_of_a_cluster_die_and_join_again() {
    let mut cluster = galera::start(3).expect("a cluster that starts");
    assert!(cluster.nodes.iter().all(answers));
    cluster.nodes[0].kill().expect("it ends");
    cluster.nodes[0].start().expect("it joins the others");
    assert!(cluster.nodes.iter().all(answers));
}

#[test]
fn shared_servers_are_the_same_for_everybody() {
    let (first, second) = (postgres::shared().unwrap(), postgres::shared().unwrap());
    assert_eq!(first.url, second.url);
    let (first, second) = (mariadb::shared().unwrap(), mariadb::shared().unwrap());
    assert_eq!(first.url, second.url);
}

fn answers(server: &Server) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).is_ok()
}

#[tokio::test]
async fn proxy_counts_round_trips_and_cuts_before_and_after() {
    let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = echo.local_addr().unwrap();
    let (heard, mut requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = echo.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut byte = [0];
                while peer.read_exact(&mut byte).await.is_ok() {
                    heard.send(byte[0]).unwrap();
                    peer.write_all(&byte).await.unwrap();
                }
            });
        }
    });
    let proxy = Proxy::start(target).await.unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port()));

    assert!(ask(address, b"ab").await);
    assert_eq!(proxy.round_trips(), 2);

    proxy.cut_at(2, Cut::BeforeRequest);
    assert!(!ask(address, b"cd").await);
    proxy.cut_on(*b"e", Cut::AfterAnswer);
    assert!(!ask(address, b"e").await);
    assert!(!proxy.take_back(), "both cuts have happened");
    for expected in *b"abce" {
        assert_eq!(requests.recv().await, Some(expected));
    }

    let held = proxy.hold_on(*b"h");
    let asking = tokio::spawn(async move { ask(address, b"h").await });
    held.arrived().await;
    assert!(requests.try_recv().is_err(), "it waits in the proxy");
    drop(held);
    assert!(asking.await.unwrap());

    proxy.refuse(true);
    assert!(!ask(address, b"f").await);
    proxy.refuse(false);
    assert!(ask(address, b"g").await);
}

/// Sends bytes one by one, waiting for each to come back.
async fn ask(address: SocketAddr, bytes: &[u8]) -> bool {
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    for byte in bytes {
        let mut answer = [0];
        if connection.write_all(&[*byte]).await.is_err()
            || connection.read_exact(&mut answer).await.is_err()
        {
            return false;
        }
        assert_eq!(answer, [*byte]);
    }
    true
}
