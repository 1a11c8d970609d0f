//! A Galera cluster: several MariaDB servers that replicate every commit.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::mariadb::{FAST, Program};
use crate::server::{Kind, Server, User, find, free_port};

/// Nodes on loopback; dropping them stops them and removes their data.
///
/// A node that was killed or stopped joins the others again when it is started.
/// `SET GLOBAL wsrep_provider_options = 'gmcast.isolate=1'` cuts a node off from
/// the others, and `=0` ends that.
pub struct Cluster {
    /// The nodes, all of which take reads and writes.
    pub nodes: Vec<Server>,
}

impl Cluster {
    /// Returns the URLs of the nodes, without database.
    pub fn urls(&self) -> Vec<String> {
        let ports = self.nodes.iter().map(Server::port);
        ports.map(crate::mariadb::url).collect()
    }
}

/// Starts a cluster of so many nodes, one after the other; takes some ten
/// seconds for each. The nodes are as durable as one server by itself.
///
/// # Errors
/// If MariaDB or Galera are not installed, or a node does not start.
pub fn start(nodes: usize) -> Result<Cluster> {
    start_with(nodes, &[])
}

/// As [`start`], without durability: for tests that end no node.
///
/// # Errors
/// As [`start`].
pub fn start_fast(nodes: usize) -> Result<Cluster> {
    start_with(nodes, FAST)
}

/// A port that was free may be taken by whoever connects somewhere before its
/// node listens: then all begin again with others.
fn start_with(nodes: usize, more: &[&str]) -> Result<Cluster> {
    const ATTEMPTS: u32 = 3;
    let mut started = start_once(nodes, more);
    for _ in 1..ATTEMPTS {
        if started.is_ok() {
            break;
        }
        started = start_once(nodes, more);
    }
    started
}

fn start_once(nodes: usize, more: &[&str]) -> Result<Cluster> {
    let plugin = find("libgalera_smm.so", &["/usr/lib/galera".into()]).context(MISSING)?;
    find("wsrep_sst_rsync", &[]).context(MISSING)?;
    find("rsync", &[]).context(MISSING)?;
    let ports = (0..nodes)
        .map(|_| Ok([free_port()?, free_port()?, free_port()?]))
        .collect::<Result<Vec<_>>>()?;
    let members: Vec<_> = ports
        .iter()
        .map(|[group, ..]| format!("127.0.0.1:{group}"))
        .collect();
    let members: Arc<str> = members.join(",").into();
    let mut cluster = Cluster { nodes: Vec::new() };
    for (number, [group, increments, snapshots]) in ports.into_iter().enumerate() {
        let options = [
            format!("--wsrep-provider={}", plugin.display()),
            format!("--wsrep-node-name=node{number}"),
            format!("--wsrep-cluster-address=gcomm://{members}"),
            format!("--wsrep-sst-receive-address=127.0.0.1:{snapshots}"),
            format!("--wsrep-node-address=127.0.0.1:{group}"),
            format!(
                "--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{group};\
                 ist.recv_addr=127.0.0.1:{increments};ist.recv_bind=127.0.0.1:{increments}"
            ),
        ];
        let options: Vec<_> = OPTIONS
            .iter()
            .chain(more)
            .copied()
            .chain(options.iter().map(String::as_str))
            .collect();
        let node = Node {
            program: Program::find(&options)?,
            begins_cluster: AtomicBool::new(number == 0),
        };
        let node = Server::private(Box::new(node)).with_context(|| format!("node {number}"))?;
        cluster.nodes.push(node);
    }
    Ok(cluster)
}

const MISSING: &str = "Galera is missing; on Debian, install it as root with: \
    apt-get install mariadb-server galera-4 rsync";

/// What Galera needs, and as durable as MariaDB's defaults.
const OPTIONS: &[&str] = &[
    "--wsrep-on=ON",
    "--wsrep-cluster-name=fleethold",
    "--wsrep-sst-method=rsync",
    "--binlog-format=ROW",
    "--default-storage-engine=InnoDB",
    "--innodb-autoinc-lock-mode=2",
    "--innodb-buffer-pool-size=128M",
];

struct Node {
    program: Program,
    /// The first node begins the cluster, once.
    begins_cluster: AtomicBool,
}

impl Kind for Node {
    fn name(&self) -> &'static str {
        "galera"
    }

    fn user(&self) -> Option<User> {
        self.program.user()
    }

    fn stop_signal(&self) -> &'static str {
        self.program.stop_signal()
    }

    fn initialise(&self, data: &Path) -> Result<()> {
        self.program.initialise(data)
    }

    fn serve(&self, directory: &Path, data: &Path, port: u16) -> Command {
        let mut server = self.program.serve(directory, data, port);
        if self.begins_cluster.swap(false, Ordering::Relaxed) {
            server.arg("--wsrep-new-cluster");
        }
        server
    }

    fn is_ready(&self, port: u16) -> bool {
        self.program.is_ready(port)
    }
}
