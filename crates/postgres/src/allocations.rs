//! Allocations of broadcasts, and the messages saved under them.

use std::time::SystemTime;

use fleethold_proto::Timestamp;
use fleethold_store::clock::{epoch_micros, epoch_nanos, timestamp};
use fleethold_store::limits::check_allocation;
use fleethold_store::record::MessageRecord;
use fleethold_store::{
    ALLOCATION_GRACE, AllocationId, AllocationInfo, BROADCAST_DISABLED, BROADCAST_UNLIMITED,
    BroadcastId, ClientId, Error, ErrorKind, Result, compute_broadcast_allocation,
};
use tokio_postgres::Row;

use crate::Shared;
use crate::broadcasts::unknown;
use crate::error::{Failure, Worked};
use crate::incoming::{Columns, insert};
use crate::query::{BYTES, LONG, Query, Values};
use crate::transactions::Tx;

impl Shared {
    pub(crate) async fn create_allocation(
        &self,
        broadcast: BroadcastId,
        fraction: f32,
        expiry: SystemTime,
    ) -> Result<Option<AllocationInfo>> {
        const OPERATION: &str = "create_allocation";
        check_allocation(OPERATION, fraction, expiry)?;
        let id = AllocationId::random(&self.random);
        let now = self.clock.now();
        self.reclaim(OPERATION, broadcast, now).await?;
        let limit = self
            .write(OPERATION, |tx| async move {
                self.allocate(&tx, OPERATION, (broadcast, id), fraction, (now, expiry))
                    .await
            })
            .await?;
        Ok(limit.map(|limit| AllocationInfo { id, limit, expiry }))
    }

    /// Takes back what servers left that ended without cleaning up. Apart from
    /// the allocation itself: at SERIALIZABLE, reading all allocations conflicts
    /// with every message that is sent meanwhile.
    async fn reclaim(
        &self,
        operation: &'static str,
        broadcast: BroadcastId,
        now: SystemTime,
    ) -> Result<()> {
        let grace = i64::try_from(ALLOCATION_GRACE.as_nanos()).expect("a few minutes");
        let abandoned_nanos = epoch_nanos(now).saturating_sub(grace);
        let broadcast: &[u8] = broadcast.as_ref();
        let values: Values<'_> = &[&broadcast, &abandoned_nanos];
        if self
            .read(operation, &ANY_ABANDONED, values)
            .await?
            .is_empty()
        {
            return Ok(());
        }
        self.write(operation, |tx| async move {
            tx.rows(&LOCK, &[&broadcast]).await?;
            tx.last(&RECLAIM, values).await.map(drop)
        })
        .await
    }

    async fn allocate(
        &self,
        tx: &Tx,
        operation: &'static str,
        (broadcast, id): (BroadcastId, AllocationId),
        fraction: f32,
        (now, expiry): (SystemTime, SystemTime),
    ) -> Worked<Option<u64>> {
        let broadcast_id: &[u8] = broadcast.as_ref();
        // Servers that allocate come one by one.
        let rows = tx.rows(&LOCK, &[&broadcast_id]).await?;
        if rows.is_empty() {
            return Err(unknown(operation, broadcast).into());
        }
        if tx.replays() {
            let mine = tx
                .rows(&READ_ALLOCATION, &[&broadcast_id, &id.as_ref()])
                .await?;
            if let Some(row) = mine.first() {
                return Ok(Some(row.get::<_, i64>(1).cast_unsigned()));
            }
        }
        let counters = Counters::read(&rows[0]);
        if counters.limit == BROADCAST_DISABLED || counters.is_expired(timestamp(now)) {
            return Ok(None);
        }
        let (size, _) = compute_broadcast_allocation(
            counters.limit,
            counters.allocated,
            counters.sent,
            fraction,
        );
        if size == 0 {
            return Ok(None);
        }
        let taken = if counters.limit == BROADCAST_UNLIMITED {
            0
        } else {
            size
        };
        let values: Values<'_> = &[
            &broadcast_id,
            &id.as_ref(),
            &size.cast_signed(),
            &epoch_nanos(expiry),
            &taken.cast_signed(),
        ];
        // The predicate holds the limit even if the lock did not.
        if tx.last(&ALLOCATE, values).await?.is_empty() {
            return Err(Failure::Overtaken);
        }
        Ok(Some(size))
    }

    pub(crate) async fn cleanup_allocation(
        &self,
        broadcast: BroadcastId,
        allocation: Option<AllocationId>,
        final_sent: u64,
    ) -> Result<()> {
        const OPERATION: &str = "cleanup_allocation";
        let final_sent = i64::try_from(final_sent).unwrap_or(i64::MAX);
        let Some(id) = allocation else {
            // Nothing tells a second count from the first.
            return self
                .write_once(OPERATION, |tx| async move {
                    let values: Values<'_> = &[&broadcast.as_ref(), &final_sent];
                    if tx.last(&COUNT_SENT, values).await?.is_empty() {
                        return Err(unknown(OPERATION, broadcast).into());
                    }
                    Ok(())
                })
                .await;
        };
        self.write(OPERATION, |tx| async move {
            let broadcast_id: &[u8] = broadcast.as_ref();
            let rows = tx.rows(&LOCK, &[&broadcast_id]).await?;
            let counters = rows
                .first()
                .map(Counters::read)
                .ok_or_else(|| unknown(OPERATION, broadcast))?;
            let values: Values<'_> = &[&broadcast_id, &id.as_ref(), &final_sent];
            let ended = tx.last(&END, values).await?;
            let limit = ended
                .first()
                .map(|row| row.get::<_, i64>(0).cast_unsigned());
            if limit.is_some_and(|limit| limit != BROADCAST_UNLIMITED && limit > counters.allocated)
            {
                tracing::error!(%broadcast, "an allocation is larger than all together");
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn save_broadcast_message(
        &self,
        operation: &'static str,
        record: MessageRecord,
        broadcast: BroadcastId,
        client: ClientId,
        allocation: Option<AllocationId>,
    ) -> Result<()> {
        let due_micros = epoch_micros(self.clock.client_retry_time());
        let records = [record];
        let [record] = &records;
        let columns = Columns::of(&records, |_| due_micros);
        let place = Save {
            operation,
            broadcast,
            client,
            allocation,
            now: self.clock.now(),
        };
        self.write(operation, |tx| {
            let (columns, place) = (&columns, &place);
            async move { place.save(&tx, record, columns).await }
        })
        .await
    }
}

/// A message of a broadcast on its way to a client.
struct Save {
    operation: &'static str,
    broadcast: BroadcastId,
    client: ClientId,
    allocation: Option<AllocationId>,
    now: SystemTime,
}

impl Save {
    async fn save(&self, tx: &Tx, record: &MessageRecord, columns: &Columns<'_>) -> Worked<()> {
        let broadcast_id: &[u8] = self.broadcast.as_ref();
        let client_id: &[u8] = self.client.as_ref();
        let allocation_id: Option<&[u8]> = self.allocation.as_ref().map(AsRef::as_ref);
        let now_nanos = epoch_nanos(self.now);
        let check: Values<'_> = &[&broadcast_id, &client_id, &allocation_id];
        let count: Values<'_> = &[&broadcast_id, &allocation_id, &now_nanos];
        let sent: Values<'_> = &[&client_id, &broadcast_id, &record.id.as_ref()];
        // All of it at once: nearly always it may be done, else it is undone.
        let first = [(&CHECK, check), (&COUNT, count), (&INSERT_SENT, sent)];
        let answers = insert(tx, &first, columns).await?;
        let row = answers[0].first().ok_or_else(|| self.disabled())?;
        let has_message: Option<&[u8]> = row.get(9);
        if tx.replays() && has_message == Some(record.id.as_ref()) {
            // An earlier run of this call, whose commit was lost.
            tx.roll_back().await;
            return Ok(());
        }
        self.check(row)?;
        if !row.get::<_, bool>(8) {
            let detail = format!("client {} does not exist", self.client);
            return Err(Error::not_found(self.operation, detail).into());
        }
        if has_message.is_some() {
            return Err(self.has_it().into());
        }
        // Somebody came in between; the next check says how.
        let counted = self.allocation.is_none() || !answers[1].is_empty();
        if !counted || answers[2].is_empty() {
            return Err(Failure::Overtaken);
        }
        Ok(())
    }

    /// Refuses a message of a broadcast or an allocation that sends no more.
    fn check(&self, row: &Row) -> Result<()> {
        let counters = Counters::read(row);
        if counters.is_expired(timestamp(self.now)) {
            return Err(self.disabled());
        }
        let Some(id) = self.allocation else {
            if counters.limit == BROADCAST_DISABLED {
                return Err(self.disabled());
            }
            return Ok(());
        };
        let allocation: (Option<i64>, Option<i64>, Option<i64>) =
            (row.get(5), row.get(6), row.get(7));
        let (Some(sent), Some(limit), Some(expiry_nanos)) = allocation else {
            return Err(self.disabled());
        };
        if sent >= limit {
            let detail = format!("allocation {id} has sent its {limit} messages");
            return Err(Error::new(
                ErrorKind::AllocationFull,
                self.operation,
                detail,
            ));
        }
        if epoch_nanos(self.now) > expiry_nanos {
            let detail = format!("allocation {id} has expired");
            return Err(Error::new(
                ErrorKind::AllocationExpired,
                self.operation,
                detail,
            ));
        }
        Ok(())
    }

    fn disabled(&self) -> Error {
        let broadcast = self.broadcast;
        let detail = format!("broadcast {broadcast} or the allocation is gone or disabled");
        Error::new(ErrorKind::BroadcastDisabled, self.operation, detail)
    }

    fn has_it(&self) -> Error {
        let (client, broadcast) = (self.client, self.broadcast);
        let detail = format!("client {client} has broadcast {broadcast} already");
        Error::new(ErrorKind::AlreadyExists, self.operation, detail)
    }
}

/// How far a broadcast has come; the first columns of several statements.
struct Counters {
    sent: u64,
    allocated: u64,
    limit: u64,
    expiration: Option<Timestamp>,
}

impl Counters {
    fn read(row: &Row) -> Self {
        let number = |at| row.get::<_, i64>(at).cast_unsigned();
        Self {
            sent: number(0),
            allocated: number(1),
            limit: number(2),
            expiration: match (row.get(3), row.get(4)) {
                (Some(seconds), Some(nanos)) => Some(Timestamp { seconds, nanos }),
                _ => None,
            },
        }
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        self.expiration
            .is_some_and(|end| (end.seconds, end.nanos) <= (now.seconds, now.nanos))
    }
}

const LOCK: Query = Query {
    sql: "\
-- allocation (lock)
SELECT sent, allocated, message_limit, expiration_seconds, expiration_nanos
FROM broadcasts WHERE broadcast_id = $1 FOR UPDATE",
    types: &[BYTES],
};

const READ_ALLOCATION: Query = Query {
    sql: "\
-- create_allocation (again)
SELECT sent, message_limit FROM allocations WHERE broadcast_id = $1 AND allocation_id = $2",
    types: &[BYTES, BYTES],
};

const ANY_ABANDONED: Query = Query {
    sql: "\
-- create_allocation (abandoned)
SELECT 1 FROM allocations WHERE broadcast_id = $1 AND expiry_nanos < $2 LIMIT 1",
    types: &[BYTES, LONG],
};

const RECLAIM: Query = Query {
    sql: "\
-- create_allocation (reclaim)
WITH ended AS (
    DELETE FROM allocations WHERE broadcast_id = $1 AND expiry_nanos < $2
    RETURNING sent, message_limit
), counted AS (
    SELECT
        coalesce(sum(sent::numeric), 0) AS sent,
        coalesce(sum(message_limit::numeric) FILTER (
            WHERE message_limit < 9223372036854775807
        ), 0) AS returned
    FROM ended
)
UPDATE broadcasts SET
    sent = least(broadcasts.sent + counted.sent, 9223372036854775807)::bigint,
    allocated = greatest(broadcasts.allocated - counted.returned, 0)::bigint
FROM counted
WHERE broadcast_id = $1",
    types: &[BYTES, LONG],
};

const ALLOCATE: Query = Query {
    sql: "\
-- create_allocation
WITH taken AS (
    UPDATE broadcasts SET allocated = allocated + $5
    WHERE broadcast_id = $1
    AND (message_limit = 9223372036854775807 OR allocated + sent <= message_limit - $5)
    RETURNING broadcast_id
)
INSERT INTO allocations (broadcast_id, allocation_id, sent, message_limit, expiry_nanos)
SELECT broadcast_id, $2, 0, $3, $4 FROM taken
RETURNING 1",
    types: &[BYTES, BYTES, LONG, LONG, LONG],
};

const COUNT_SENT: Query = Query {
    sql: "\
-- cleanup_allocation (count)
UPDATE broadcasts SET sent = least(sent::numeric + $2, 9223372036854775807)::bigint
WHERE broadcast_id = $1
RETURNING 1",
    types: &[BYTES, LONG],
};

const END: Query = Query {
    sql: "\
-- cleanup_allocation
WITH ended AS (
    DELETE FROM allocations WHERE broadcast_id = $1 AND allocation_id = $2 RETURNING message_limit
)
UPDATE broadcasts SET
    sent = least(sent::numeric + $3, 9223372036854775807)::bigint,
    allocated = CASE WHEN ended.message_limit = 9223372036854775807 THEN allocated
        ELSE greatest(allocated - ended.message_limit, 0) END
FROM ended
WHERE broadcast_id = $1
RETURNING ended.message_limit",
    types: &[BYTES, BYTES, LONG],
};

const CHECK: Query = Query {
    sql: "\
-- save_broadcast_message (check)
SELECT
    broadcasts.sent, allocated, broadcasts.message_limit, expiration_seconds, expiration_nanos,
    allocations.sent, allocations.message_limit, expiry_nanos,
    EXISTS (SELECT 1 FROM clients WHERE clients.client_id = $2),
    (
        SELECT coalesce(message_id, ''::bytea) FROM broadcasts_sent
        WHERE broadcasts_sent.client_id = $2 AND broadcasts_sent.broadcast_id = $1
    )
FROM broadcasts
LEFT JOIN allocations ON allocations.broadcast_id = $1 AND allocations.allocation_id = $3
WHERE broadcasts.broadcast_id = $1",
    types: &[BYTES, BYTES, BYTES],
};

const COUNT: Query = Query {
    sql: "\
-- save_broadcast_message (count)
UPDATE allocations SET sent = sent + 1
WHERE broadcast_id = $1 AND allocation_id = $2 AND sent < message_limit AND expiry_nanos >= $3
RETURNING 1",
    types: &[BYTES, BYTES, LONG],
};

const INSERT_SENT: Query = Query {
    sql: "\
-- save_broadcast_message (sent)
INSERT INTO broadcasts_sent (client_id, broadcast_id, message_id) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING
RETURNING 1",
    types: &[BYTES, BYTES, BYTES],
};
