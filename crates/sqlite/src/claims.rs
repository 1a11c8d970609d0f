//! Claims: who hands out a message moves its due time, so that nobody else does.
//!
//! Only the writer claims, one call after the other, so a due message goes to
//! exactly one caller. Most calls find nothing due; they find that out in memory
//! or on a reader, and cost no commit.

use std::ops::ControlFlow;
use std::time::SystemTime;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use fleethold_store::clock::{epoch_micros, timestamp};
use fleethold_store::limits::{MAX_CLAIM_BYTES, MOST_EARLY_CLAIMS, payload_bytes};
use fleethold_store::record::ResultRecord;
use fleethold_store::{
    ClaimServerMessages, ClientId, MOST_OVERDUE_COUNTED, MessageId, Result, ServiceLimits,
};
use rusqlite::{Connection, Params, Row, params};

use crate::Shared;
use crate::error::Worked;
use crate::messages::{find_all, set_result};
use crate::rows::{array, read_messages};
use crate::writer::Tx;

impl Shared {
    pub(crate) async fn claim_client_messages(
        &self,
        client: ClientId,
        limit: u64,
        service_limits: Option<ServiceLimits>,
    ) -> Result<Vec<Message>> {
        const OPERATION: &str = "client_messages_for_processing";
        let accepted = move |service: &String| match &service_limits {
            None => limit,
            Some(limits) => limits.get(service).copied().unwrap_or(0).min(limit),
        };
        let Some(seen) = self.context.quiet.look(client) else {
            self.check_open(OPERATION)?;
            return Ok(Vec::new());
        };
        let now_micros = epoch_micros(self.context.clock.now());
        let services = self
            .read(OPERATION, move |connection| {
                pending_services(connection, client, now_micros)
            })
            .await?;
        if services.is_empty() {
            self.context.quiet.remember(client, seen);
        }
        if !due(services).any(|service| accepted(&service) > 0) {
            return Ok(Vec::new());
        }
        self.write(OPERATION, move |tx| {
            let now_micros = epoch_micros(tx.clock().now());
            let mut due = Vec::new();
            for service in self::due(pending_services(tx, client, now_micros)?) {
                let accepted = accepted(&service);
                if accepted > 0 {
                    let of_service =
                        params![client.as_bytes(), service, now_micros, number(accepted)];
                    read_due(tx, DUE_FOR_CLIENT, of_service, &mut due)?;
                    first(&mut due, limit);
                }
            }
            claim(tx, due, |_| tx.clock().client_retry_time())
        })
        .await
    }

    pub(crate) async fn release_client_messages(
        &self,
        client: ClientId,
        ids: Vec<MessageId>,
    ) -> Result<()> {
        const OPERATION: &str = "release_messages";
        if ids.is_empty() {
            return self.check_open(OPERATION);
        }
        self.write(OPERATION, move |tx| {
            let now_micros = epoch_micros(tx.clock().now());
            let wanted: Vec<_> = ids.into_iter().map(|id| tx.ids().want(id)).collect();
            let messages = array(find_all(tx, &wanted)?);
            tx.prepare_cached(RELEASE)?.execute(params![
                messages,
                client.as_bytes(),
                now_micros,
                MOST_EARLY_CLAIMS
            ])?;
            Ok(())
        })
        .await
    }
}

const RELEASE: &str = "\
-- release
UPDATE messages SET due_micros = ?3
WHERE message IN rarray(?1) AND destination_client = ?2 AND due_micros > ?3 AND claims <= ?4";

#[async_trait]
impl ClaimServerMessages for Shared {
    async fn claim_server_messages(&self, limit: u64) -> Result<Vec<Message>> {
        const OPERATION: &str = "server_messages_for_processing";
        let now_micros = epoch_micros(self.context.clock.now());
        let any: bool = self
            .read(OPERATION, move |connection| {
                Ok(connection
                    .prepare_cached(ANY_DUE_FOR_SERVER)?
                    .query_row([now_micros], |row| row.get(0))?)
            })
            .await?;
        if !any || limit == 0 {
            return Ok(Vec::new());
        }
        self.write(OPERATION, move |tx| {
            let now_micros = epoch_micros(tx.clock().now());
            let mut due = Vec::new();
            let oldest = params![now_micros, number(limit)];
            read_due(tx, DUE_FOR_SERVER, oldest, &mut due)?;
            claim(tx, due, |claims| tx.clock().server_retry_time(claims))
        })
        .await
    }
}

/// Returns how many messages are overdue for services, up to a limit, and
/// since when the oldest is.
pub(crate) fn overdue_for_server(
    connection: &Connection,
    now_micros: i64,
) -> Worked<(u64, Option<i64>)> {
    let overdue = params![now_micros, number(MOST_OVERDUE_COUNTED)];
    let overdue = connection
        .prepare_cached(OVERDUE_FOR_SERVER)?
        .query_row(overdue, |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))?;
    Ok((u64::try_from(overdue.0).unwrap_or(0), overdue.1))
}

// A part of the index, as long as the limit at most.
const OVERDUE_FOR_SERVER: &str = "\
-- overdue_for_server
SELECT count(*), min(due_micros) FROM (
    SELECT due_micros FROM messages INDEXED BY pending_for_server
    WHERE due_micros <= ?1 AND due_micros IS NOT NULL AND destination_client IS NULL
    ORDER BY due_micros LIMIT ?2
) AS overdue";

fn number(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A destination service for which something is pending, and whether it is due.
type PendingService = (String, bool);

/// Returns the destination services for which something is pending for a client.
pub(crate) fn pending_services(
    connection: &Connection,
    client: ClientId,
    now_micros: i64,
) -> Worked<Vec<PendingService>> {
    let services = connection
        .prepare_cached(PENDING_SERVICES)?
        .query_map(params![client.as_bytes(), now_micros], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<Result<_, _>>()?;
    Ok(services)
}

fn due(services: Vec<PendingService>) -> impl Iterator<Item = String> {
    let due = services.into_iter().filter(|(_, is_due)| *is_due);
    due.map(|(service, _)| service)
}

// Steps from service to service in the index; a backlog is skipped, not walked.
const PENDING_SERVICES: &str = "\
-- pending_services
WITH RECURSIVE services (service) AS (
    SELECT (
        SELECT min(destination_service) FROM messages INDEXED BY pending_for_client
        WHERE destination_client = ?1 AND due_micros IS NOT NULL
    )
    UNION ALL
    SELECT (
        SELECT min(destination_service) FROM messages INDEXED BY pending_for_client
        WHERE destination_client = ?1 AND destination_service > services.service
        AND due_micros IS NOT NULL
    )
    FROM services WHERE services.service IS NOT NULL
)
SELECT service, EXISTS (
    SELECT 1 FROM messages INDEXED BY pending_for_client
    WHERE destination_client = ?1 AND destination_service = services.service
    AND due_micros <= ?2
)
FROM services WHERE service IS NOT NULL";

/// A due message; the order is that of claims.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    due_micros: i64,
    /// Bytes, because a damaged id must not stop the claim.
    message_id: Vec<u8>,
    message: i64,
    claims: u32,
}

impl Due {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            message: row.get(0)?,
            due_micros: row.get(1)?,
            message_id: row.get_ref(2)?.as_bytes()?.to_vec(),
            claims: u32::try_from(row.get::<_, i64>(3)?).unwrap_or(u32::MAX),
        })
    }
}

fn read_due(tx: &Tx<'_>, sql: &str, parameters: impl Params, due: &mut Vec<Due>) -> Worked<()> {
    let mut statement = tx.prepare_cached(sql)?;
    for row in statement.query_map(parameters, Due::read)? {
        due.push(row?);
    }
    Ok(())
}

/// Keeps the first `limit`.
fn first(due: &mut Vec<Due>, limit: u64) {
    due.sort_unstable();
    due.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
}

const DUE_FOR_CLIENT: &str = "\
-- due_for_client
SELECT message, due_micros, message_id, claims FROM messages INDEXED BY pending_for_client
WHERE destination_client = ?1 AND destination_service = ?2 AND due_micros <= ?3
ORDER BY due_micros, message_id LIMIT ?4";

const DUE_FOR_SERVER: &str = "\
-- due_for_server
SELECT message, due_micros, message_id, claims FROM messages INDEXED BY pending_for_server
WHERE destination_client IS NULL AND due_micros <= ?1
ORDER BY due_micros, message_id LIMIT ?2";

const ANY_DUE_FOR_SERVER: &str = "\
-- any_due_for_server
SELECT EXISTS (
    SELECT 1 FROM messages INDEXED BY pending_for_server
    WHERE destination_client IS NULL AND due_micros <= ?1
)";

/// Moves the due times of messages and returns those that can be read.
fn claim(
    tx: &Tx<'_>,
    due: Vec<Due>,
    retry_time: impl Fn(u32) -> SystemTime,
) -> Worked<Vec<Message>> {
    let messages: Vec<_> = due.iter().map(|due| due.message).collect();
    let mut claimed = Vec::with_capacity(messages.len());
    let (mut damaged, mut bytes) = (Vec::new(), 0);
    read_messages(tx, &messages, true, |message, read| {
        match read {
            Ok(read) => {
                bytes += payload_bytes(&read);
                claimed.push(read);
            }
            Err(error) => damaged.push((message, error)),
        }
        Ok(if bytes < MAX_CLAIM_BYTES {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    tx.hold(bytes);
    let mut reschedule = tx.prepare_cached(RESCHEDULE)?;
    for due in &due[..claimed.len() + damaged.len()] {
        let claims = due.claims.saturating_add(1);
        reschedule.execute(params![
            due.message,
            epoch_micros(retry_time(claims)),
            claims
        ])?;
    }
    for (message, error) in damaged {
        tracing::error!(message, %error, "a message cannot be read and has failed");
        let result = ResultRecord {
            processed_time: timestamp(tx.clock().now()),
            failure: Some(format!("The stored message cannot be read: {error}.")),
        };
        set_result(tx, message, &result, false)?;
    }
    Ok(claimed)
}

const RESCHEDULE: &str = "\
-- reschedule
UPDATE messages SET due_micros = ?2, claims = ?3 WHERE message = ?1";
