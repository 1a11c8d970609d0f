//! Messages of broadcasts: saved, counted and noted in one transaction.

use fleethold_store::clock::{epoch_micros, timestamp};
use fleethold_store::record::MessageRecord;
use fleethold_store::{AllocationId, BROADCAST_DISABLED, BroadcastId, ClientId, Error, ErrorKind};
use mysql_async::Row;

use crate::clients::{CLIENT_EXISTS, no_client};
use crate::counters::{Allocation, COUNT_IN_ALLOCATION, Counters, LOCK_ALLOCATION, SHARE_COUNTERS};
use crate::error::{Worked, code};
use crate::incoming::New;
use crate::rows::take;
use crate::sql::{Batch, Value};
use crate::transaction::Tx;

/// A message of a broadcast to save.
pub(crate) struct Save {
    pub(crate) message: MessageRecord,
    pub(crate) broadcast: BroadcastId,
    pub(crate) client: ClientId,
    pub(crate) allocation: Option<AllocationId>,
}

impl Save {
    pub(crate) async fn run(&self, tx: &mut Tx, operation: &'static str) -> Worked<()> {
        let broadcast = Value::Bytes(self.broadcast.as_bytes());
        let client = Value::Bytes(self.client.as_bytes());
        let mut batch = Batch::of(SHARE_COUNTERS, &[broadcast]);
        batch.add(CLIENT_EXISTS, &[client]);
        batch.add(HAS_BROADCAST, &[client, broadcast]);
        if let Some(allocation) = &self.allocation {
            batch.add(
                LOCK_ALLOCATION,
                &[broadcast, Value::Bytes(allocation.as_bytes())],
            );
        }
        let mut replies = tx.run(batch).await?.into_iter().map(|reply| reply.rows);
        let mut next = || replies.next().unwrap_or_default();
        let (counters, clients, sent) = (next(), next(), next());
        let allocation = next();
        if tx.replayed() && self.was_saved(&sent)? {
            return Ok(());
        }
        self.check(operation, tx, Counters::found(counters)?, allocation)?;
        if clients.is_empty() {
            let detail = format!("client {} does not exist", self.client);
            return Err(Error::not_found(operation, detail).into());
        }
        if !sent.is_empty() {
            return Err(self.has_it(operation).into());
        }
        let due_micros = epoch_micros(tx.context.clock.client_retry_time());
        let message = Value::Bytes(self.message.id.as_bytes());
        let mut batch = Batch::default();
        if let Some(allocation) = &self.allocation {
            let key = [broadcast, Value::Bytes(allocation.as_bytes())];
            batch.add(COUNT_IN_ALLOCATION, &key);
        }
        New::due_at(self.message.clone(), due_micros).store(&mut batch);
        batch.add(INSERT_SENT, &[broadcast, client]);
        batch.add(INSERT_CARRIER, &[broadcast, client, message]);
        match tx.commit(batch).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_server(code::DUPLICATE_KEY) => {
                Err(self.has_it(operation).into())
            }
            Err(failure) => Err(no_client(failure, operation, self.client)),
        }
    }

    /// Whether an earlier attempt has saved this very message.
    fn was_saved(&self, sent: &[Row]) -> Worked<bool> {
        match sent {
            [row] => {
                let carrier: Option<Vec<u8>> = take(&mut row.clone(), 0)?;
                Ok(carrier.as_deref() == Some(self.message.id.as_bytes()))
            }
            _ => Ok(false),
        }
    }

    fn check(
        &self,
        operation: &'static str,
        tx: &Tx,
        counters: Option<Counters>,
        allocation: Vec<Row>,
    ) -> Worked<()> {
        let disabled = || {
            let broadcast = self.broadcast;
            let detail = format!("broadcast {broadcast} or the allocation is gone or disabled");
            Error::new(ErrorKind::BroadcastDisabled, operation, detail)
        };
        let now = timestamp(tx.context.clock.now());
        let counters = counters.ok_or_else(disabled)?;
        // An allocation does not help: in a cluster, one may have been made at
        // another node while this broadcast was disabled.
        if counters.is_expired(now) || counters.limit == BROADCAST_DISABLED {
            return Err(disabled().into());
        }
        if self.allocation.is_none() {
            return Ok(());
        }
        let found = Allocation::all(allocation)?;
        let allocation = found.first().ok_or_else(disabled)?;
        allocation.check(operation, now)?;
        Ok(())
    }

    fn has_it(&self, operation: &'static str) -> Error {
        let detail = format!(
            "client {} has broadcast {} already",
            self.client, self.broadcast
        );
        Error::new(ErrorKind::AlreadyExists, operation, detail)
    }
}

const HAS_BROADCAST: &str = "\
-- save_broadcast_message (check)
SELECT message_id FROM broadcast_sent
LEFT JOIN fleethold_broadcast_messages
    ON fleethold_broadcast_messages.broadcast_id = broadcast_sent.broadcast_id
    AND fleethold_broadcast_messages.client_id = broadcast_sent.client_id
WHERE broadcast_sent.client_id = ? AND broadcast_sent.broadcast_id = ?";

const INSERT_SENT: &str = "\
-- save_broadcast_message (sent)
INSERT INTO broadcast_sent (broadcast_id, client_id) VALUES (?, ?)";

const INSERT_CARRIER: &str = "\
-- save_broadcast_message
INSERT INTO fleethold_broadcast_messages (broadcast_id, client_id, message_id) VALUES (?, ?, ?)
ON DUPLICATE KEY UPDATE message_id = VALUES(message_id)";
