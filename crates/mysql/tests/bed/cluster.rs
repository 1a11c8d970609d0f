//! The state of a cluster's nodes.

use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};

/// Waits until all nodes of a cluster that was just started take statements:
/// they take connections before.
pub(crate) async fn all_joined(nodes: &[String]) {
    for node in nodes {
        joined(node, &nodes.len().to_string()).await;
    }
}

pub(crate) async fn status(connection: &mut Conn, name: &str) -> mysql_async::Result<String> {
    let row: Option<(String, String)> = connection
        .query_first(format!("SHOW GLOBAL STATUS LIKE '{name}'"))
        .await?;
    Ok(row.expect("a cluster").1)
}

/// Waits until a node belongs to a cluster of so many nodes and takes
/// statements; returns how long that took.
pub(crate) async fn joined(node: &str, size: &str) -> Duration {
    let began = Instant::now();
    let url = format!("{node}/");
    // A node that is joining may refuse everything.
    while !matches!(is_member(&url, size).await, Ok(true)) {
        assert!(began.elapsed() < Duration::from_secs(60), "{node}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

async fn is_member(url: &str, size: &str) -> mysql_async::Result<bool> {
    let mut connection = Conn::new(Opts::from_url(url)?).await?;
    let mut is = true;
    for (name, value) in [
        ("wsrep_cluster_status", "Primary"),
        ("wsrep_cluster_size", size),
        ("wsrep_ready", "ON"),
        ("wsrep_local_state_comment", "Synced"),
    ] {
        is &= status(&mut connection, name).await? == value;
    }
    connection.disconnect().await?;
    Ok(is)
}
