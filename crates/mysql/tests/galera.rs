//! Runs the suite of all stores on a cluster of three nodes: the first store of
//! a case is at one node, the others that share its database are at the others.
//! With `FLEETHOLD_LONG=1` at each level of isolation.
//!
//! All cases are one test for nextest, so that they share a cluster.
//! `cargo test -p fleethold-mysql --test galera -- PART-OF-A-NAME` runs some.

mod bed;

use std::process::ExitCode;
use std::sync::Arc;

use bed::Mysql;
use bed::cluster::all_joined;
use fleethold_conformance::Harness;
use fleethold_mysql::{Isolation, Takeover};
use fleethold_testdb::galera;
use libtest_mimic::{Arguments, Trial};

const NAME: &str = "suite_passes_on_a_cluster_of_three_nodes";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, vec![Trial::test(NAME, || Ok(()))]).exit_code();
    }
    if arguments.filter.as_deref() == Some(NAME) {
        arguments.filter = None;
        arguments.exact = false;
    }
    let cluster = galera::start_fast(3).expect("a cluster that starts");
    let nodes = cluster.urls();
    bed::apart(move || async move { all_joined(&nodes).await });
    let mut committed = Mysql::at("galera", Isolation::ReadCommitted);
    committed.options.takeover = Takeover::Widen;
    let others = [
        Mysql::at("galera-repeatable-read", Isolation::RepeatableRead),
        Mysql::at("galera-serializable", Isolation::Serializable),
    ];
    let all = std::iter::once(committed).chain(others).map(|kind| {
        let nodes = cluster.urls();
        Arc::new(Mysql { nodes, ..kind }) as Arc<dyn Harness>
    });
    fleethold_conformance::run_with(&arguments, all)
}
