//! What is wrong with rows, and how many there are.

use fleethold_store::maintenance::{Finding, MOST_EXAMPLES, Sizes, Table};

use crate::error::Worked;
use crate::rows::take;
use crate::sql::Batch;
use crate::transaction::Tx;

/// Returns what is wrong.
pub(super) async fn findings(tx: &mut Tx) -> Worked<Vec<Finding>> {
    tx.take_time();
    let mut findings = Vec::new();
    for (problem, sql) in PROBLEMS {
        let replies = tx.run(Batch::of(sql, &[])).await?;
        let rows: Vec<_> = replies.into_iter().flat_map(|reply| reply.rows).collect();
        let mut examples = Vec::new();
        for mut row in rows.iter().take(MOST_EXAMPLES).cloned() {
            examples.push(take(&mut row, 0)?);
        }
        if !rows.is_empty() {
            findings.push(Finding {
                problem,
                rows: u64::try_from(rows.len()).unwrap_or(u64::MAX),
                examples,
            });
        }
    }
    Ok(findings)
}

/// Counts rows.
pub(super) async fn sizes(tx: &mut Tx) -> Worked<Sizes> {
    tx.take_time();
    let mut sizes = Sizes::default();
    let mut batch = Batch::default();
    for sql in COUNTS {
        batch.add(sql, &[]);
    }
    let replies = tx.commit(batch).await?;
    let mut counts = Vec::new();
    for mut row in replies.into_iter().flat_map(|reply| reply.rows) {
        counts.push(take::<Option<u64>>(&mut row, 0)?.unwrap_or_default());
    }
    let mut counts = counts.into_iter();
    for table in Table::ALL {
        sizes.rows.push((table, counts.next().unwrap_or_default()));
    }
    sizes.pending_for_clients = counts.next().unwrap_or_default();
    sizes.pending_for_server = counts.next().unwrap_or_default();
    sizes.bytes = counts.next();
    Ok(sizes)
}

/// In the order of [`Table::ALL`]; then what is pending, and the bytes on disk.
const COUNTS: [&str; 11] = [
    "-- sizes (clients)\nSELECT COUNT(*) FROM clients",
    "-- sizes (messages)\nSELECT COUNT(*) FROM messages",
    "-- sizes (contacts)\nSELECT COUNT(*) FROM client_contacts",
    "-- sizes (links)\nSELECT COUNT(*) FROM client_contact_messages",
    "-- sizes (usage)\nSELECT COUNT(*) FROM client_resource_usage_records",
    "-- sizes (broadcasts)\nSELECT COUNT(*) FROM broadcasts",
    "-- sizes (sent)\nSELECT COUNT(*) FROM broadcast_sent",
    "-- sizes (files)\nSELECT COUNT(*) FROM files",
    "-- sizes (for clients)\nSELECT COUNT(*) FROM pending_messages WHERE for_server = 0",
    "-- sizes (for the server)\nSELECT COUNT(*) FROM pending_messages WHERE for_server = 1",
    "-- sizes (bytes)\nSELECT SUM(data_length + index_length) FROM information_schema.tables\n\
     WHERE table_schema = DATABASE()",
];

/// What foreign keys do not see, with the keys of the rows.
const PROBLEMS: [(&str, &str); 7] = [
    (
        "messages have neither a result nor a pending row, and are never handed out",
        "-- check (lost)\nSELECT LOWER(HEX(messages.message_id)) FROM messages\n\
         LEFT JOIN pending_messages ON pending_messages.message_id = messages.message_id\n\
         WHERE processed_time_seconds IS NULL AND pending_messages.message_id IS NULL LIMIT 10000",
    ),
    (
        "messages have a result and a pending row, and are handed out again",
        "-- check (again)\nSELECT LOWER(HEX(messages.message_id)) FROM messages\n\
         JOIN pending_messages ON pending_messages.message_id = messages.message_id\n\
         WHERE processed_time_seconds IS NOT NULL LIMIT 10000",
    ),
    (
        "pending messages are marked for the wrong side",
        "-- check (side)\nSELECT LOWER(HEX(messages.message_id)) FROM messages\n\
         JOIN pending_messages ON pending_messages.message_id = messages.message_id\n\
         WHERE for_server <> (destination_client_id IS NULL) LIMIT 10000",
    ),
    (
        "pending messages are in the queue of another client",
        "-- check (queue)\nSELECT LOWER(HEX(messages.message_id)) FROM messages\n\
         JOIN pending_messages ON pending_messages.message_id = messages.message_id\n\
         WHERE fleethold_queue IS NOT NULL\n\
         AND LEFT(fleethold_queue, 8) <> COALESCE(destination_client_id, x'') LIMIT 10000",
    ),
    (
        "pending messages of clients that do not exist",
        "-- check (pending)\nSELECT LOWER(HEX(messages.message_id)) FROM messages\n\
         JOIN pending_messages ON pending_messages.message_id = messages.message_id\n\
         LEFT JOIN clients ON clients.client_id = messages.destination_client_id\n\
         WHERE messages.destination_client_id IS NOT NULL AND clients.client_id IS NULL\n\
         LIMIT 10000",
    ),
    (
        "broadcasts have allocated less than their allocations have together",
        "-- check (allocated)\nSELECT LOWER(HEX(broadcasts.broadcast_id)) FROM broadcasts\n\
         JOIN broadcast_allocations\n\
         ON broadcast_allocations.broadcast_id = broadcasts.broadcast_id\n\
         WHERE broadcast_allocations.message_limit < 9223372036854775807\n\
         GROUP BY broadcasts.broadcast_id, broadcasts.allocated\n\
         HAVING broadcasts.allocated < SUM(broadcast_allocations.message_limit) LIMIT 10000",
    ),
    (
        "allocations have sent more than they may",
        "-- check (over)\nSELECT LOWER(HEX(allocation_id)) FROM broadcast_allocations\n\
         WHERE sent > message_limit LIMIT 10000",
    ),
];
