//! What stock servers have stored, on its way into our queues.

use fleethold_store::{ClientId, MessageId, Result};
use futures::FutureExt;

use crate::error::Worked;
use crate::rows::{SERVER_QUEUE, queue, take, take_id};
use crate::schema::LockClause;
use crate::sql::{Batch, List, MOST_ROWS, Value};
use crate::transaction::{Replay, Shared, Tx};

/// How many rows of stock servers one call takes into our queues.
const MOST_ADOPTED: usize = 10;

impl Shared {
    /// Puts messages that stock servers have stored into our queues. Rows that
    /// they have locked have to wait for the next call.
    pub(crate) async fn adopt(&self, operation: &'static str) -> Result<()> {
        for _ in 0..MOST_ADOPTED {
            let adopted = self
                .write(operation, Replay::Safe, (), |(), tx| {
                    async move { adopt(tx).await }.boxed()
                })
                .await?;
            if adopted < MOST_ROWS {
                break;
            }
        }
        Ok(())
    }
}

/// Puts some messages into queues and returns how many.
async fn adopt(tx: &mut Tx) -> Worked<usize> {
    let sql = match tx.context.facts.lock {
        LockClause::SkipLocked => LOCK_FOREIGN,
        LockClause::Wait => LOCK_FOREIGN_AND_WAIT,
    };
    let most = Value::Unsigned(u64::try_from(MOST_ROWS).unwrap_or(u64::MAX));
    let mut foreign: Vec<MessageId> = Vec::new();
    for mut row in tx
        .run(Batch::of(sql, &[most]))
        .await?
        .into_iter()
        .flat_map(|reply| reply.rows)
    {
        foreign.push(take_id(&mut row, 0)?);
    }
    if foreign.is_empty() {
        return Ok(0);
    }
    let ids = List::ids(&foreign);
    let batch = Batch::of(READ_DESTINATIONS, &[Value::List(&ids)]);
    let mut queues = Vec::with_capacity(foreign.len());
    for mut row in tx
        .run(batch)
        .await?
        .into_iter()
        .flat_map(|reply| reply.rows)
    {
        let message: MessageId = take_id(&mut row, 0)?;
        let client: Option<Vec<u8>> = take(&mut row, 1)?;
        let service: String = take(&mut row, 2)?;
        let client = client.and_then(|client| ClientId::try_from(&client[..]).ok());
        let queue = client.map_or(SERVER_QUEUE.to_vec(), |client| {
            queue(client, &service).to_vec()
        });
        queues.push((message, queue, client.is_none()));
    }
    let rows = queues.iter().map(|(message, queue, for_server)| {
        [
            Value::Bytes(message.as_bytes()),
            Value::Bytes(queue),
            Value::Int((*for_server).into()),
        ]
    });
    let table = List::table(
        "SELECT ? AS id, ? AS queue, ? AS for_server",
        "SELECT ?, ?, ?",
        rows,
    );
    let replies = tx.commit(Batch::of(ADOPT, &[Value::List(&table)])).await?;
    let adopted = replies.iter().map(|reply| reply.affected).sum::<u64>();
    Ok(usize::try_from(adopted).unwrap_or(usize::MAX))
}

const LOCK_FOREIGN: &str = "\
-- adopt (lock)
SELECT message_id FROM pending_messages WHERE fleethold_queue IS NULL
ORDER BY fleethold_queue, scheduled_time, message_id LIMIT ?
FOR UPDATE SKIP LOCKED";

const LOCK_FOREIGN_AND_WAIT: &str = "\
-- adopt (lock and wait)
SELECT message_id FROM pending_messages WHERE fleethold_queue IS NULL
ORDER BY fleethold_queue, scheduled_time, message_id LIMIT ?
FOR UPDATE";

const READ_DESTINATIONS: &str = "\
-- adopt (destinations)
SELECT message_id, destination_client_id, destination_service_name
FROM messages WHERE message_id IN (?)";

const ADOPT: &str = "\
-- adopt
UPDATE (?) AS given STRAIGHT_JOIN pending_messages
    ON pending_messages.for_server = given.for_server AND pending_messages.message_id = given.id
SET pending_messages.fleethold_queue = given.queue";
