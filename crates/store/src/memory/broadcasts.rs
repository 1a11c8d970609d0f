//! Broadcasts in memory.

use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::server::Broadcast;

use super::MemoryStore;
use crate::broadcasts::{
    ALLOCATION_GRACE, AllocationInfo, BROADCAST_DISABLED, BROADCAST_UNLIMITED, BroadcastInfo,
    BroadcastProgress, BroadcastStore, compute_broadcast_allocation,
    compute_broadcast_allocation_cleanup,
};
use crate::clock::timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{AllocationId, BroadcastId, ClientId};
use crate::limits::check_allocation;
use crate::record::{BroadcastRecord, MessageRecord};

#[async_trait]
impl BroadcastStore for MemoryStore {
    async fn create_broadcast(&self, broadcast: &Broadcast, limit: u64) -> Result<()> {
        const OPERATION: &str = "create_broadcast";
        let record = BroadcastRecord::parse(OPERATION, broadcast, limit)?;
        self.shared.with(OPERATION, |state| {
            if state.broadcasts.rows.contains_key(&record.id) {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    OPERATION,
                    format!("broadcast {} exists", record.id),
                ));
            }
            let now = self.shared.clock.now();
            for row in state.broadcasts.rows.values_mut() {
                if row.is_active(now) && record.replaces(&row.record) {
                    row.disable();
                }
            }
            let row = Row {
                record,
                sent: 0,
                allocated: 0,
                allocations: BTreeMap::new(),
            };
            state.broadcasts.rows.insert(row.record.id, row);
            Ok(())
        })
    }

    async fn set_broadcast_limit(&self, id: BroadcastId, limit: u64) -> Result<()> {
        const OPERATION: &str = "set_broadcast_limit";
        self.shared.with(OPERATION, |state| {
            let row = state.broadcasts.row(OPERATION, id)?;
            if limit == BROADCAST_DISABLED {
                row.disable();
            } else {
                row.record.limit = limit.min(BROADCAST_UNLIMITED);
            }
            Ok(())
        })
    }

    async fn disable_broadcasts(&self, ids: &[BroadcastId]) -> Result<()> {
        self.shared.with("disable_broadcasts", |state| {
            for id in ids {
                if let Some(row) = state.broadcasts.rows.get_mut(id) {
                    row.disable();
                }
            }
            Ok(())
        })
    }

    async fn save_broadcast_message(
        &self,
        message: &Message,
        broadcast: BroadcastId,
        client: ClientId,
        allocation: Option<AllocationId>,
    ) -> Result<()> {
        const OPERATION: &str = "save_broadcast_message";
        let record = MessageRecord::parse(OPERATION, message)?;
        self.shared.with(OPERATION, |state| {
            let now = self.shared.clock.now();
            let disabled = || {
                let detail = format!("broadcast {broadcast} or the allocation is gone or disabled");
                Error::new(ErrorKind::BroadcastDisabled, OPERATION, detail)
            };
            let row = state
                .broadcasts
                .rows
                .get_mut(&broadcast)
                .ok_or_else(disabled)?;
            if row.is_expired(now) {
                return Err(disabled());
            }
            let count = match allocation {
                None if row.record.limit == BROADCAST_DISABLED => return Err(disabled()),
                None => None,
                Some(id) => {
                    let allocation = row.allocations.get_mut(&id).ok_or_else(disabled)?;
                    allocation.check(OPERATION, id, now)?;
                    Some(&mut allocation.sent)
                }
            };
            let sent = state.clients.sent_broadcasts(client).ok_or_else(|| {
                Error::not_found(OPERATION, format!("client {client} does not exist"))
            })?;
            if sent.contains_key(&broadcast) {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    OPERATION,
                    format!("client {client} has broadcast {broadcast} already"),
                ));
            }
            sent.insert(broadcast, Some(record.id));
            if let Some(count) = count {
                *count += 1;
            }
            if !state.messages.contains(record.id) {
                state
                    .messages
                    .insert(record, self.shared.clock.client_retry_time());
            }
            Ok(())
        })
    }

    async fn list_active_broadcasts(&self) -> Result<Vec<BroadcastInfo>> {
        self.shared.with("list_active_broadcasts", |state| {
            let now = self.shared.clock.now();
            Ok(state
                .broadcasts
                .rows
                .values()
                .filter(|row| row.is_active(now))
                .map(|row| BroadcastInfo {
                    broadcast: row.record.clone().into_broadcast(),
                    sent: row.sent,
                    limit: row.record.limit,
                })
                .collect())
        })
    }

    async fn list_sent_broadcasts(&self, client: ClientId) -> Result<Vec<BroadcastId>> {
        self.shared.with("list_sent_broadcasts", |state| {
            let sent = state.clients.sent_broadcasts(client);
            Ok(sent.iter().flat_map(|ids| ids.keys().copied()).collect())
        })
    }

    async fn broadcast_progress(&self, id: BroadcastId) -> Result<BroadcastProgress> {
        const OPERATION: &str = "broadcast_progress";
        self.shared.with(OPERATION, |state| {
            state.broadcasts.row(OPERATION, id)?;
            let mut progress = BroadcastProgress::default();
            for message in state.clients.messages_of_broadcast(id) {
                progress.sent += 1;
                match message.and_then(|message| state.messages.result(message)) {
                    None => {}
                    Some(None) => progress.pending += 1,
                    Some(Some(result)) if result.failure.is_some() => progress.failed += 1,
                    Some(Some(_)) => progress.acknowledged += 1,
                }
            }
            Ok(progress)
        })
    }

    async fn create_allocation(
        &self,
        broadcast: BroadcastId,
        fraction: f32,
        expiry: SystemTime,
    ) -> Result<Option<AllocationInfo>> {
        const OPERATION: &str = "create_allocation";
        check_allocation(OPERATION, fraction, expiry)?;
        self.shared.with(OPERATION, |state| {
            let row = state.broadcasts.row(OPERATION, broadcast)?;
            let now = self.shared.clock.now();
            row.reclaim(now);
            if row.record.limit == BROADCAST_DISABLED || row.is_expired(now) {
                return Ok(None);
            }
            let (limit, allocated) =
                compute_broadcast_allocation(row.record.limit, row.allocated, row.sent, fraction);
            if limit == 0 {
                return Ok(None);
            }
            let id = AllocationId::random(&self.shared.random);
            row.allocated = allocated;
            let allocation = Allocation {
                sent: 0,
                limit,
                expiry,
            };
            row.allocations.insert(id, allocation);
            Ok(Some(AllocationInfo { id, limit, expiry }))
        })
    }

    async fn cleanup_allocation(
        &self,
        broadcast: BroadcastId,
        allocation: Option<AllocationId>,
        final_sent: u64,
    ) -> Result<()> {
        const OPERATION: &str = "cleanup_allocation";
        self.shared.with(OPERATION, |state| {
            let row = state.broadcasts.row(OPERATION, broadcast)?;
            match allocation {
                None => row.count_sent(final_sent),
                Some(id) => {
                    if row.end_allocation(id).is_some() {
                        row.count_sent(final_sent);
                    }
                }
            }
            Ok(())
        })
    }
}

/// All broadcasts.
#[derive(Debug, Default)]
pub(super) struct Broadcasts {
    pub(super) rows: BTreeMap<BroadcastId, Row>,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) record: BroadcastRecord,
    /// Messages of finished allocations.
    pub(super) sent: u64,
    /// The sum of the limits of live allocations.
    pub(super) allocated: u64,
    pub(super) allocations: BTreeMap<AllocationId, Allocation>,
}

#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) sent: u64,
    pub(super) limit: u64,
    pub(super) expiry: SystemTime,
}

impl Broadcasts {
    fn row(&mut self, operation: &'static str, id: BroadcastId) -> Result<&mut Row> {
        self.rows
            .get_mut(&id)
            .ok_or_else(|| Error::not_found(operation, format!("broadcast {id} does not exist")))
    }
}

impl Row {
    fn is_expired(&self, now: SystemTime) -> bool {
        let now = timestamp(now);
        self.record
            .expiration_time
            .is_some_and(|end| (end.seconds, end.nanos) <= (now.seconds, now.nanos))
    }

    fn is_active(&self, now: SystemTime) -> bool {
        self.sent < self.record.limit && !self.is_expired(now)
    }

    fn disable(&mut self) {
        self.record.limit = BROADCAST_DISABLED;
        self.end_allocations(|_| true);
    }

    /// Ends allocations whose owners had time to clean up and did not.
    fn reclaim(&mut self, now: SystemTime) {
        self.end_allocations(|allocation| allocation.expiry + ALLOCATION_GRACE < now);
    }

    fn end_allocations(&mut self, which: impl Fn(&Allocation) -> bool) {
        let ids: Vec<_> = self
            .allocations
            .iter()
            .filter(|(_, allocation)| which(allocation))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(ended) = self.end_allocation(id) {
                self.count_sent(ended.sent);
            }
        }
    }

    fn end_allocation(&mut self, id: AllocationId) -> Option<Allocation> {
        let ended = self.allocations.remove(&id)?;
        self.allocated = compute_broadcast_allocation_cleanup(ended.limit, self.allocated);
        Some(ended)
    }

    fn count_sent(&mut self, sent: u64) {
        self.sent = self.sent.saturating_add(sent).min(BROADCAST_UNLIMITED);
    }
}

impl Allocation {
    fn check(&self, operation: &'static str, id: AllocationId, now: SystemTime) -> Result<()> {
        if self.sent >= self.limit {
            let detail = format!("allocation {id} has sent its {} messages", self.limit);
            return Err(Error::new(ErrorKind::AllocationFull, operation, detail));
        }
        if now > self.expiry {
            let detail = format!("allocation {id} has expired");
            return Err(Error::new(ErrorKind::AllocationExpired, operation, detail));
        }
        Ok(())
    }
}
