//! What is wrong with rows, and how many there are.

use fleethold_store::Result;
use fleethold_store::maintenance::{Finding, MOST_EXAMPLES, Sizes, Table};

use crate::Shared;
use crate::query::Query;

/// Returns what is wrong.
pub(super) async fn findings(shared: &Shared) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (problem, query) in CHECKS {
        let rows = shared.read_many("check", query, &[]).await?;
        if !rows.is_empty() {
            findings.push(Finding {
                problem,
                rows: u64::try_from(rows.len()).unwrap_or(u64::MAX),
                examples: rows
                    .iter()
                    .take(MOST_EXAMPLES)
                    .map(|row| row.get(0))
                    .collect(),
            });
        }
    }
    Ok(findings)
}

/// Each returns a name for every row that has the problem.
const CHECKS: &[(&str, Query)] = &[
    (
        "labels, contacts or usage records of clients that do not exist",
        Query {
            sql: "\
-- check (clients)
SELECT DISTINCT encode(client_id, 'hex') FROM (
    SELECT client_id FROM client_labels
    UNION ALL SELECT client_id FROM contacts
    UNION ALL SELECT client_id FROM usage_records
    UNION ALL SELECT client_id FROM broadcasts_sent
) AS referring
WHERE NOT EXISTS (SELECT 1 FROM clients WHERE clients.client_id = referring.client_id)",
            types: &[],
        },
    ),
    (
        "messages with an id that occurs twice",
        Query {
            sql: "\
-- check (ids)
SELECT encode(message_id, 'hex') FROM messages GROUP BY message_id HAVING count(*) > 1",
            types: &[],
        },
    ),
    (
        "messages that are both pending and done, or neither",
        Query {
            sql: "\
-- check (results)
SELECT encode(messages.message_id, 'hex') FROM messages
LEFT JOIN (
    SELECT message_id, client_id FROM client_pending
    UNION ALL SELECT message_id, client_id FROM server_pending
) AS pending
ON pending.message_id = messages.message_id AND pending.client_id = messages.client_id
WHERE (pending.message_id IS NULL) = (processed_seconds IS NULL)",
            types: &[],
        },
    ),
    (
        "pending messages that do not exist",
        Query {
            sql: "\
-- check (orphans)
SELECT encode(pending.message_id, 'hex') FROM (
    SELECT message_id, client_id FROM client_pending
    UNION ALL SELECT message_id, client_id FROM server_pending
) AS pending
WHERE NOT EXISTS (
    SELECT 1 FROM messages
    WHERE messages.message_id = pending.message_id AND messages.client_id = pending.client_id
)",
            types: &[],
        },
    ),
    (
        "payloads of messages that have a result, or do not exist",
        Query {
            sql: "\
-- check (payloads)
SELECT DISTINCT encode(message_id, 'hex') FROM payload_chunks AS chunk
WHERE NOT EXISTS (
    SELECT 1 FROM client_pending AS pending
    WHERE pending.message_id = chunk.message_id AND pending.client_id = chunk.client_id
) AND NOT EXISTS (
    SELECT 1 FROM server_pending AS pending
    WHERE pending.message_id = chunk.message_id AND pending.client_id = chunk.client_id
)",
            types: &[],
        },
    ),
    (
        "pending messages of clients that do not exist",
        Query {
            sql: "\
-- check (pending)
SELECT encode(message_id, 'hex') FROM client_pending AS pending
WHERE NOT EXISTS (SELECT 1 FROM clients WHERE clients.client_id = pending.client_id)",
            types: &[],
        },
    ),
    (
        "broadcasts whose allocations do not add up to what is allocated",
        Query {
            sql: "\
-- check (allocations)
SELECT encode(broadcast_id, 'hex') FROM broadcasts
WHERE message_limit < 9223372036854775807 AND allocated <> (
    SELECT coalesce(sum(allocations.message_limit), 0) FROM allocations
    WHERE allocations.broadcast_id = broadcasts.broadcast_id
    AND allocations.message_limit < 9223372036854775807
)",
            types: &[],
        },
    ),
    (
        "pieces of files that do not exist",
        Query {
            sql: "\
-- check (files)
SELECT DISTINCT encode(version, 'hex') FROM file_chunks AS chunk
WHERE NOT EXISTS (
    SELECT 1 FROM files WHERE files.service = chunk.service AND files.name = chunk.name
    AND files.version = chunk.version
)",
            types: &[],
        },
    ),
];

/// Counts rows.
pub(super) async fn sizes(shared: &Shared) -> Result<Sizes> {
    let rows = shared.read_many("sizes", &COUNT, &[]).await?;
    let count = |at| {
        rows.first()
            .map_or(0, |row| row.get::<_, i64>(at).cast_unsigned())
    };
    Ok(Sizes {
        rows: Table::ALL
            .into_iter()
            .enumerate()
            .map(|(at, table)| (table, count(at)))
            .collect(),
        pending_for_clients: count(8),
        pending_for_server: count(9),
        bytes: Some(count(10)),
    })
}

// In the order of `Table::ALL`.
const COUNT: Query = Query {
    sql: "\
-- sizes
SELECT
    (SELECT count(*) FROM clients),
    (SELECT count(*) FROM messages),
    (SELECT count(*) FROM contacts),
    (
        SELECT count(*) FROM contact_messages AS links
        WHERE EXISTS (SELECT 1 FROM messages WHERE messages.message_id = links.message_id)
    ) + (
        SELECT count(*) FROM messages JOIN contacts
        ON contacts.client_id = messages.source_client AND contacts.contact_id = messages.contact_id
    ),
    (SELECT count(*) FROM usage_records),
    (SELECT count(*) FROM broadcasts),
    (SELECT count(*) FROM broadcasts_sent),
    (SELECT count(*) FROM files),
    (SELECT count(*) FROM client_pending),
    (SELECT count(*) FROM server_pending),
    pg_database_size(current_database())",
    types: &[],
};
