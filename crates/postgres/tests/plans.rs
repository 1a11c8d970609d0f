//! What claims read and lock, counted by the database.
//!
//! `FLEETHOLD_LONG=1` makes the largest backlog a million messages.
//!
//! For each row, a claim goes down four trees: to the pending row by its key, to
//! the two places where its new version is noted, and to the message. Trees of
//! 1,000 rows have two levels, those of 100,000 three, that of some million
//! messages four, and each level is a page for each row: so pages grow by less
//! than half where rows grow a thousandfold. Rows do not grow at all.

mod bed;
mod statements;

use bed::Database;
use serde_json::Value;
use tokio_postgres::Client;

const CLAIMED: i64 = 100;

fn backlog() -> i64 {
    if std::env::var_os("FLEETHOLD_LONG").is_some() {
        1_000_000
    } else {
        100_000
    }
}

/// What one run of a statement did.
#[derive(Debug)]
struct Work {
    /// Rows that came out of tables and indexes.
    rows_read: f64,
    rows_locked: f64,
    rows_returned: f64,
    buffers: f64,
}

/// Fills both queues; half of the client's messages are for a service that is
/// listed before the other.
async fn fill(client: &Client, count: i64) {
    for (table, home, destination) in [
        (
            "client_pending",
            "'\\x0101010101010101'",
            "'\\x0101010101010101'::bytea",
        ),
        (
            "server_pending",
            "substr(sha256(int8send(-n)), 1, 8)",
            "NULL::bytea",
        ),
    ] {
        let sql = format!(
            "INSERT INTO messages (
                client_id, message_id, source_service, source_message_id, destination_client,
                destination_service, message_type, creation_seconds, creation_nanos
            )
            SELECT {home}, sha256('{table}' || int8send(n)), '', '', {destination}, '', '', 1, 0
            FROM generate_series(1, {count}) AS n;
            INSERT INTO {table} (
                client_id, message_id, service, due_micros, claims, claim_token, was_due_micros,
                type_url, value, value_bytes, chunks
            )
            SELECT {home}, sha256('{table}' || int8send(n)),
                CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END::bytea, n, 0, 0, n, '', '', 0, 0
            FROM generate_series(1, {count}) AS n"
        );
        client.batch_execute(&sql).await.expect("rows");
    }
    // As autovacuum does: a small table without statistics is read as a whole.
    client.batch_execute("ANALYZE").await.expect("statistics");
}

/// Runs a claim as the store does: prepared, with the plan that fits all values.
async fn work(client: &Client, name: &str, types: &str, values: &str) -> Work {
    let sql = statements::named(name);
    let setup = format!(
        "SET enable_seqscan = off; SET jit = off; SET plan_cache_mode = force_generic_plan;
        DEALLOCATE ALL; PREPARE claim ({types}) AS {sql}; BEGIN"
    );
    client
        .batch_execute(&setup)
        .await
        .expect("a prepared claim");
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE claim ({values})");
    let row = client.simple_query(&explain).await.expect("a plan");
    client.batch_execute("ROLLBACK").await.expect("the end");
    let text: String = row
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    let plan: Value = serde_json::from_str(&text).expect("JSON");
    let top = &plan[0]["Plan"];
    let number = |node: &Value, name: &str| node[name].as_f64().unwrap_or(0.0);
    let mut work = Work {
        rows_read: 0.0,
        rows_locked: 0.0,
        rows_returned: number(top, "Actual Rows"),
        buffers: number(top, "Shared Hit Blocks") + number(top, "Shared Read Blocks"),
    };
    let mut nodes = vec![top];
    while let Some(node) = nodes.pop() {
        let rows = number(node, "Actual Rows") * number(node, "Actual Loops");
        let kind = node["Node Type"].as_str().unwrap_or_default();
        if kind.contains("Index") || kind == "Seq Scan" {
            work.rows_read += rows + number(node, "Rows Removed by Filter");
        }
        if kind == "LockRows" {
            work.rows_locked += rows;
        }
        nodes.extend(node["Plans"].as_array().into_iter().flatten());
    }
    work
}

const CLIENT_TYPES: &str =
    "bytea, bigint, bigint, bytea[], bigint[], boolean, bigint, bigint, bigint";
const SERVER_TYPES: &str = "bigint, bigint, bigint, bigint[], bigint";

async fn claims(client: &Client) -> Vec<(&'static str, Work)> {
    let of_client = "client_messages_for_processing";
    let id = "'\\x0101010101010101', 5000000, 100";
    let rest = "8388608, 6000000, 1";
    let all = format!("{id}, '{{}}', '{{}}', true, {rest}");
    let one = format!("{id}, '{{\"b\"}}', '{{100}}', false, {rest}");
    let server = "5000000, 100, 8388608, array_fill(6000000::bigint, ARRAY[100]), 1";
    vec![
        (
            "all services",
            work(client, of_client, CLIENT_TYPES, &all).await,
        ),
        (
            "one service",
            work(client, of_client, CLIENT_TYPES, &one).await,
        ),
        (
            "server",
            work(
                client,
                "server_messages_for_processing",
                SERVER_TYPES,
                server,
            )
            .await,
        ),
    ]
}

async fn claims_of(count: i64) -> Vec<(&'static str, Work)> {
    let database = Database::new().await;
    let client = database.connect().await;
    fill(&client, count).await;
    claims(&client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_costs_the_same_however_much_waits_and_locks_what_it_returns() {
    let small = claims_of(1_000).await;
    let medium = claims_of(50_000).await;
    let large = claims_of(backlog()).await;
    for ((what, small), ((_, medium), (_, large))) in
        small.into_iter().zip(medium.into_iter().zip(large))
    {
        let told = format!(
            "{what}: {small:?} of 1,000, {medium:?} of 50,000, {large:?} of {}",
            backlog()
        );
        #[expect(clippy::print_stdout, reason = "the figures of the documents")]
        {
            println!("{told}");
        }
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let claimed = CLAIMED as f64;
        for work in [&small, &medium, &large] {
            assert_eq!(work.rows_returned, claimed, "{told}");
            assert!(work.rows_locked <= work.rows_returned, "{told}");
            assert!(work.rows_locked > 0.0, "{told}");
        }
        assert!(large.rows_read <= small.rows_read * 1.2, "{told}");
        for work in [&medium, &large] {
            assert!(work.buffers <= small.buffers * 1.5, "{told}");
        }
    }
}
