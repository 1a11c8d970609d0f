//! The program on a database server.

use fleethold_testdb::postgres;

use crate::harness::{AgentOptions, Bed};

#[test]
fn messages_go_both_ways_and_survive_a_sigkill_with_a_store_on_postgresql() {
    let database = postgres::private(&[]).expect("PostgreSQL is installed");
    let url = format!("{}/postgres", postgres::url(database.port()));
    let mut bed = Bed::start_with(&["--store", &url]);
    let agent = bed.start_agent("one", AgentOptions::STREAMING);
    let client = bed.service.client_of(&agent);
    let before = bed.service.exchange(&client, "before");
    bed.service.wait_until_done(std::slice::from_ref(&before));
    bed.server.kill();
    bed.server.start_again();
    let after = bed.service.exchange(&client, "after");
    bed.service.wait_until_done(&[before, after]);
}
