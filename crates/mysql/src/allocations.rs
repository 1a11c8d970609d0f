//! Parts of a broadcast's limit that servers reserve.

use std::time::SystemTime;

use fleethold_store::clock::timestamp;
use fleethold_store::{
    ALLOCATION_GRACE, AllocationId, AllocationInfo, BROADCAST_DISABLED, BROADCAST_UNLIMITED,
    BroadcastId, compute_broadcast_allocation,
};

use crate::counters::{
    self, Allocation, Counters, INSERT_ALLOCATION, LOCK_ABANDONED, LOCK_ALLOCATION, LOCK_COUNTERS,
    RESERVE, unknown,
};
use crate::error::Worked;
use crate::sql::{Batch, Value};
use crate::transaction::Tx;

/// Ends an allocation whose owner sent so many messages, or only counts them.
pub(crate) async fn clean_up(
    tx: &mut Tx,
    operation: &'static str,
    broadcast: BroadcastId,
    allocation: Option<AllocationId>,
    final_sent: u64,
) -> Worked<()> {
    let key = Value::Bytes(broadcast.as_bytes());
    let mut batch = Batch::of(LOCK_COUNTERS, &[key]);
    if let Some(allocation) = &allocation {
        batch.add(LOCK_ALLOCATION, &[key, Value::Bytes(allocation.as_bytes())]);
    }
    let mut replies = tx.run(batch).await?.into_iter();
    let counters = Counters::found(replies.next().map_or(Vec::new(), |reply| reply.rows))?
        .ok_or_else(|| unknown(operation, broadcast))?;
    let mut batch = Batch::default();
    if allocation.is_some() {
        let found = Allocation::all(replies.next().map_or(Vec::new(), |reply| reply.rows))?;
        let [ended] = &found[..] else {
            return Ok(());
        };
        if ended.limit != BROADCAST_UNLIMITED && ended.limit > counters.allocated {
            tracing::error!(%broadcast, "an allocation is larger than all together");
        }
        // Its owner knows better than its row how many messages it sent.
        let ended = Allocation {
            sent: final_sent,
            ..*ended
        };
        counters::end(&mut batch, broadcast, &[ended]);
    } else {
        counters::count(&mut batch, broadcast, final_sent, 0);
    }
    tx.commit(batch).await?;
    Ok(())
}

/// A part of a limit to reserve.
pub(crate) struct Allocate {
    pub(crate) id: AllocationId,
    pub(crate) broadcast: BroadcastId,
    pub(crate) fraction: f32,
    pub(crate) expiry: SystemTime,
}

impl Allocate {
    pub(crate) async fn run(
        &self,
        tx: &mut Tx,
        operation: &'static str,
    ) -> Worked<Option<AllocationInfo>> {
        let now = tx.context.clock.now();
        let broadcast = Value::Bytes(self.broadcast.as_bytes());
        let (seconds, nanos) = counters::parts(now - ALLOCATION_GRACE);
        let mut batch = Batch::of(LOCK_COUNTERS, &[broadcast]);
        batch.add(
            LOCK_ABANDONED,
            &[
                broadcast,
                Value::Int(seconds),
                Value::Int(seconds),
                Value::Int(nanos),
            ],
        );
        batch.add(
            LOCK_ALLOCATION,
            &[broadcast, Value::Bytes(self.id.as_bytes())],
        );
        let mut replies = tx.run(batch).await?.into_iter().map(|reply| reply.rows);
        let mut next = || replies.next().unwrap_or_default();
        let counters =
            Counters::found(next())?.ok_or_else(|| unknown(operation, self.broadcast))?;
        let abandoned = Allocation::all(next())?;
        if let [made] = &Allocation::all(next())?[..] {
            return Ok(Some(self.info(made.limit)));
        }
        let (sent, reserved) = abandoned.iter().fold((0_u64, 0_u64), |sums, allocation| {
            let reserved = match allocation.limit {
                BROADCAST_UNLIMITED => 0,
                limit => limit,
            };
            (
                sums.0.saturating_add(allocation.sent),
                sums.1.saturating_add(reserved),
            )
        });
        let is_off = counters.limit == BROADCAST_DISABLED || counters.is_expired(timestamp(now));
        let limit = if is_off {
            0
        } else {
            let (limit, _) = compute_broadcast_allocation(
                counters.limit,
                counters.allocated.saturating_sub(reserved),
                counters.sent.saturating_add(sent).min(BROADCAST_UNLIMITED),
                self.fraction,
            );
            limit
        };
        let mut batch = Batch::default();
        counters::end(&mut batch, self.broadcast, &abandoned);
        if limit == 0 {
            tx.commit(batch).await?;
            return Ok(None);
        }
        if limit != BROADCAST_UNLIMITED {
            let reserve = [Value::Unsigned(limit), broadcast, Value::Unsigned(limit)];
            batch.add(RESERVE, &reserve);
            let reserved = tx.run(batch).await?;
            batch = Batch::default();
            if reserved.last().is_none_or(|reply| reply.affected == 0) {
                return Ok(None);
            }
        }
        let (seconds, nanos) = counters::parts(self.expiry);
        batch.add(
            INSERT_ALLOCATION,
            &[
                broadcast,
                Value::Bytes(self.id.as_bytes()),
                Value::Unsigned(limit),
                Value::Int(seconds),
                Value::Int(nanos),
            ],
        );
        tx.commit(batch).await?;
        Ok(Some(self.info(limit)))
    }

    fn info(&self, limit: u64) -> AllocationInfo {
        AllocationInfo {
            id: self.id,
            limit,
            expiry: self.expiry,
        }
    }
}
