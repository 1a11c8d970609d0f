//! What is wrong with rows, and how many there are.

use fleethold_store::maintenance::{Finding, MOST_EXAMPLES, Sizes, Table};
use rusqlite::Connection;

use crate::error::Worked;

/// Returns what is wrong.
pub(crate) fn findings(connection: &Connection) -> Worked<Vec<Finding>> {
    let mut findings = Vec::new();
    for (problem, sql) in CHECKS {
        let mut statement = connection.prepare(sql)?;
        let mut found = statement.query(())?;
        let (mut rows, mut examples) = (0, Vec::new());
        while let Some(row) = found.next()? {
            rows += 1;
            if examples.len() < MOST_EXAMPLES {
                examples.push(row.get(0)?);
            }
        }
        if rows > 0 {
            findings.push(Finding {
                problem,
                rows,
                examples,
            });
        }
    }
    Ok(findings)
}

/// Each returns a name for every row that has the problem.
const CHECKS: &[(&str, &str)] = &[
    (
        "the database file is damaged; restore a backup",
        "\
-- check (file)
SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
    ),
    (
        "rows that refer to rows that do not exist",
        "\
-- check (references)
SELECT \"table\" || ' row ' || coalesce(rowid, '?') || ' to ' || parent
FROM pragma_foreign_key_check",
    ),
    (
        "messages with an id that occurs twice",
        "\
-- check (ids)
SELECT lower(hex(message_id)) FROM messages GROUP BY message_id HAVING count(*) > 1",
    ),
    (
        "messages whose id cannot be looked up",
        "\
-- check (look-up)
SELECT lower(hex(message_id)) FROM messages
WHERE message <= (SELECT max(up_to) FROM message_ids_complete)
AND message NOT IN (SELECT message FROM message_ids)",
    ),
    (
        "messages that are both pending and done, or neither",
        "\
-- check (results)
SELECT lower(hex(message_id)) FROM messages
WHERE (due_micros IS NULL) = (processed_seconds IS NULL)",
    ),
    (
        "payloads of messages that have a result",
        "\
-- check (payloads)
SELECT lower(hex(message_id)) FROM payloads JOIN messages USING (message)
WHERE due_micros IS NULL",
    ),
    (
        "pending messages of clients that do not exist",
        "\
-- check (pending)
SELECT lower(hex(message_id)) FROM messages
WHERE due_micros IS NOT NULL AND destination_client IS NOT NULL
AND destination_client NOT IN (SELECT client_id FROM clients)",
    ),
    (
        "broadcasts whose allocations do not add up to what is allocated",
        "\
-- check (allocations)
SELECT lower(hex(broadcast_id)) FROM broadcasts
WHERE message_limit < 9223372036854775807 AND allocated <> (
    SELECT coalesce(sum(allocations.message_limit), 0) FROM allocations
    WHERE allocations.broadcast_id = broadcasts.broadcast_id
    AND allocations.message_limit < 9223372036854775807
)",
    ),
];

/// Counts rows.
pub(crate) fn sizes(connection: &Connection) -> Worked<Sizes> {
    let count = |sql: &str| -> Worked<u64> {
        let count: i64 = connection.query_row(sql, (), |row| row.get(0))?;
        Ok(count.cast_unsigned())
    };
    let mut rows = Vec::new();
    for table in Table::ALL {
        let sql = match table {
            Table::Clients => "SELECT count(*) FROM clients",
            Table::Messages => "SELECT count(*) FROM messages",
            Table::Contacts => "SELECT count(*) FROM contacts",
            Table::Links => COUNT_LINKS,
            Table::Usage => "SELECT count(*) FROM usage_records",
            Table::Broadcasts => "SELECT count(*) FROM broadcasts",
            Table::Sent => "SELECT count(*) FROM broadcasts_sent",
            Table::Files => "SELECT count(*) FROM files",
        };
        rows.push((table, count(sql)?));
    }
    Ok(Sizes {
        rows,
        pending_for_clients: count(COUNT_FOR_CLIENTS)?,
        pending_for_server: count(COUNT_FOR_SERVER)?,
        bytes: Some(count(COUNT_BYTES)?),
    })
}

const COUNT_LINKS: &str = "\
-- sizes (links)
SELECT (SELECT count(*) FROM messages JOIN contacts USING (contact))
    + (SELECT count(*) FROM contact_messages
       JOIN contacts USING (contact) JOIN messages USING (message))";

const COUNT_FOR_CLIENTS: &str = "\
-- sizes (pending for clients)
SELECT count(*) FROM messages
WHERE due_micros IS NOT NULL AND destination_client IS NOT NULL";

const COUNT_FOR_SERVER: &str = "\
-- sizes (pending for the server)
SELECT count(*) FROM messages WHERE due_micros IS NOT NULL AND destination_client IS NULL";

const COUNT_BYTES: &str = "\
-- sizes (bytes)
SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
