//! Broadcasts to the clients of this server, within this server's allocations.
//!
//! For each active broadcast there is one [`Share`]: the right to send some of
//! it. A share that is used up is refilled on demand, so a limit is reached
//! exactly and without waiting (protocol specification section 3.8).

mod share;
#[cfg(test)]
mod tests;
mod wake_up;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_store::limits::fills_claim;
use fleethold_store::{
    BROADCAST_UNLIMITED, BroadcastId, BroadcastInfo, ClientId, Clock, Error, ErrorKind, MessageId,
    Outcome, Random, Store,
};
use tokio::sync::Notify;

use self::share::{Report, Right, Share};
use crate::cache::CachedClient;
use crate::streams::Streams;

/// How much of what is left of a broadcast a server takes at a time.
const SHARE: f32 = 0.2;

/// How long an allocation lasts.
const ALLOCATION_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// The most broadcast messages a client gets at a time; it takes the next ones
/// when these are on their way.
const MOST_AT_A_TIME: usize = 100;

/// The most ended shares that wait to be counted. Without its report, the store
/// ends an allocation itself some minutes after its expiry.
const MOST_UNREPORTED: usize = 10_000;

/// The active broadcasts and what this server may send of them.
pub(crate) struct Broadcasts {
    store: Arc<dyn Store>,
    streams: Arc<Streams>,
    clock: Arc<dyn Clock>,
    random: Arc<Random>,
    poll: Duration,
    current: Mutex<Current>,
    /// What could not be reported yet; held while shares are made or ended.
    unreported: tokio::sync::Mutex<Vec<Report>>,
    /// There is something new to send.
    news: Notify,
    /// A client did not get what it is due.
    missed: AtomicBool,
}

#[derive(Default)]
struct Current {
    /// Grows when a client that has been served may have to be served again.
    version: u64,
    shares: BTreeMap<BroadcastId, Arc<Share>>,
}

impl Broadcasts {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        streams: Arc<Streams>,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
        poll: Duration,
    ) -> Self {
        Self {
            store,
            streams,
            clock,
            random,
            poll,
            current: Mutex::default(),
            unreported: tokio::sync::Mutex::default(),
            news: Notify::new(),
            missed: AtomicBool::new(false),
        }
    }

    /// Stores and returns broadcast messages that `client` is due, and whether
    /// there are more; after an error those it has got so far, and the rest at
    /// its next contact or after the next refresh.
    pub(crate) async fn messages_for(
        self: &Arc<Self>,
        client: ClientId,
        cached: &CachedClient,
    ) -> (Vec<Message>, bool) {
        let mut messages = Vec::new();
        let (version, shares) = self.matching(cached);
        if shares.is_empty() || cached.is_served(version) {
            return (messages, false);
        }
        let more = match self.send_all(shares, client, &mut messages).await {
            Ok(true) => true,
            Ok(false) => {
                cached.set_served(version);
                false
            }
            Err(error) => {
                tracing::warn!(%client, error = %crate::chain(&error), "cannot send broadcasts");
                self.missed.store(true, Ordering::Relaxed);
                false
            }
        };
        (messages, more)
    }

    /// Reads the active broadcasts again and wakes the open streams if there
    /// is something new to send.
    pub(crate) async fn refresh(self: &Arc<Self>) -> Result<(), Error> {
        let mut unreported = self.unreported.lock().await;
        let active = self.store.list_active_broadcasts().await?;
        let ended = self.with(|current| {
            let ended = current
                .shares
                .keys()
                .filter(|id| {
                    !active
                        .iter()
                        .any(|info| info.broadcast.broadcast_id[..] == id.as_bytes()[..])
                })
                .copied()
                .collect::<Vec<_>>();
            ended
                .iter()
                .filter_map(|id| current.shares.remove(id))
                .collect::<Vec<_>>()
        });
        for share in ended {
            unreported.push(share.end().await);
        }
        let mut is_new = false;
        for info in active {
            match self.renew(info, &mut unreported).await {
                Ok(renewed) => is_new |= renewed,
                // The others must not wait for this one.
                Err(error) => {
                    tracing::warn!(error = %crate::chain(&error), "cannot renew the allocation of a broadcast");
                }
            }
        }
        if is_new {
            self.with(|current| current.version += 1);
        }
        if is_new || self.missed.swap(false, Ordering::Relaxed) {
            self.news.notify_one();
        }
        self.report(&mut unreported).await;
        Ok(())
    }

    /// Refreshes now and then and wakes streams, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let ((), ()) = tokio::join!(
            self.refresh_repeatedly(),
            wake_up::run(&self.news, &self.streams)
        );
    }

    async fn refresh_repeatedly(self: &Arc<Self>) {
        loop {
            if let Err(error) = self.refresh().await {
                tracing::warn!(error = %crate::chain(&error), "cannot refresh broadcasts");
            }
            tokio::time::sleep(self.poll.mul_f64(1.0 + self.random.unit())).await;
        }
    }

    /// Ends all shares and counts them in the store.
    pub(crate) async fn close(&self) {
        let mut unreported = self.unreported.lock().await;
        for share in self
            .with(|current| std::mem::take(&mut current.shares))
            .into_values()
        {
            unreported.push(share.end().await);
        }
        self.report(&mut unreported).await;
    }

    fn matching(&self, client: &CachedClient) -> (u64, Vec<Arc<Share>>) {
        self.with(|current| {
            let shares = current.shares.values().filter(|share| {
                let mut required = share.broadcast.required_labels.iter();
                required.all(|label| client.has_label(&label.service_name, &label.label))
            });
            (current.version, shares.cloned().collect())
        })
    }

    /// Returns whether there is more to send.
    async fn send_all(
        self: &Arc<Self>,
        shares: Vec<Arc<Share>>,
        client: ClientId,
        messages: &mut Vec<Message>,
    ) -> Result<bool, Error> {
        let sent = self.store.list_sent_broadcasts(client).await?;
        for share in shares.into_iter().filter(|share| !sent.contains(&share.id)) {
            if messages.len() >= MOST_AT_A_TIME || fills_claim(messages) {
                return Ok(true);
            }
            // A task of its own: an agent that hangs up must not stop it
            // between the store's count and ours.
            let broadcasts = Arc::clone(self);
            let sending = tokio::spawn(async move { broadcasts.send(share, client).await });
            match sending.await {
                Ok(message) => messages.extend(message?),
                Err(error) => tracing::error!(%error, "sending a broadcast panicked"),
            }
        }
        Ok(false)
    }

    /// Sends one message, refilling the share if it is used up.
    async fn send(
        &self,
        mut share: Arc<Share>,
        client: ClientId,
    ) -> Result<Option<Message>, Error> {
        loop {
            let using = share.in_use.read().await;
            if !share.take_place(&*self.clock) {
                drop(using);
                match self.refill(&share).await? {
                    Some(refilled) => share = refilled,
                    None => return Ok(None),
                }
                continue;
            }
            let message = share.message(client, MessageId::random(&self.random), &*self.clock);
            let allocation = share.right.allocation().map(|allocation| allocation.id);
            let saved = self
                .store
                .save_broadcast_message(&message, share.id, client, allocation)
                .await;
            let Err(error) = saved else {
                return Ok(Some(message));
            };
            // What may have been saved counts: the limit must hold.
            if error.outcome() == Outcome::NotApplied {
                share.return_place();
            }
            drop(using);
            match error.kind() {
                // Another contact of this client was faster, or an operator was.
                ErrorKind::AlreadyExists | ErrorKind::BroadcastDisabled => return Ok(None),
                ErrorKind::AllocationFull | ErrorKind::AllocationExpired => {
                    match self.refill(&share).await? {
                        Some(refilled) => share = refilled,
                        None => return Ok(None),
                    }
                }
                _ => return Err(error),
            }
        }
    }

    /// Replaces a share that is used up; `None` if nothing is left to send.
    async fn refill(&self, used_up: &Arc<Share>) -> Result<Option<Arc<Share>>, Error> {
        let mut unreported = self.unreported.lock().await;
        let current = self.with(|current| current.shares.get(&used_up.id).cloned());
        match current {
            None => return Ok(None),
            Some(current) if !Arc::ptr_eq(&current, used_up) => return Ok(Some(current)),
            Some(_) => {}
        }
        if matches!(used_up.right, Right::Unlimited) || used_up.has_expired(&*self.clock) {
            return Ok(None);
        }
        let share = self
            .replace(used_up.broadcast.clone(), used_up.id, &mut unreported)
            .await?;
        self.report(&mut unreported).await;
        Ok(share)
    }

    /// Brings the share of an active broadcast up to date; returns whether
    /// there is something to send where there was nothing.
    async fn renew(
        &self,
        info: BroadcastInfo,
        unreported: &mut Vec<Report>,
    ) -> Result<bool, Error> {
        let Ok(id) = BroadcastId::try_from(&info.broadcast.broadcast_id[..]) else {
            return Ok(false);
        };
        let share = self.with(|current| current.shares.get(&id).cloned());
        if info.limit != BROADCAST_UNLIMITED {
            let good = share
                .as_ref()
                .is_some_and(|share| share.is_good_for(2 * self.poll, &*self.clock));
            match share.as_ref().map(|share| &share.right) {
                Some(Right::OnDemand) => return Ok(false),
                Some(Right::Limited(_)) if good => {
                    if share.as_ref().is_some_and(|share| share.is_idle()) {
                        self.leave_to_others(id, info.broadcast, unreported).await;
                    }
                    return Ok(false);
                }
                _ => {}
            }
            let replaced = self.replace(info.broadcast, id, unreported).await?;
            return Ok(share.is_none() && replaced.is_some());
        }
        match share {
            Some(share) if matches!(share.right, Right::Unlimited) => {
                // Counted now and then, so that a crash loses little of the count.
                let sent = std::mem::take(&mut *share.sent());
                if sent > 0 {
                    unreported.push(Report {
                        broadcast: id,
                        allocation: None,
                        sent,
                    });
                }
                Ok(false)
            }
            limited => {
                let unlimited = Arc::new(Share::new(id, info.broadcast, Right::Unlimited));
                self.with(|current| current.shares.insert(id, unlimited));
                let is_new = limited.is_none();
                if let Some(limited) = limited {
                    unreported.push(limited.end().await);
                }
                Ok(is_new)
            }
        }
    }

    /// Gives back what nobody here seems to need: agents of other servers may
    /// wait for it. The next agent that is due gets a new share, if there is one.
    async fn leave_to_others(
        &self,
        id: BroadcastId,
        broadcast: Broadcast,
        unreported: &mut Vec<Report>,
    ) {
        let on_demand = Arc::new(Share::new(id, broadcast, Right::OnDemand));
        let idle = self.with(|current| current.shares.insert(id, on_demand));
        if let Some(idle) = idle {
            unreported.push(idle.end().await);
        }
    }

    /// Puts a new share in the place of the old one, which is ended after that.
    async fn replace(
        &self,
        broadcast: Broadcast,
        id: BroadcastId,
        unreported: &mut Vec<Report>,
    ) -> Result<Option<Arc<Share>>, Error> {
        let expiry = self.clock.now() + ALLOCATION_LIFETIME;
        let allocation = match self.store.create_allocation(id, SHARE, expiry).await {
            Err(error) if error.is_not_found() => None,
            other => other?,
        };
        let share = allocation
            .map(|allocation| Arc::new(Share::new(id, broadcast, Right::Limited(allocation))));
        let old = self.with(|current| match &share {
            Some(share) => current.shares.insert(id, Arc::clone(share)),
            None => current.shares.remove(&id),
        });
        if let Some(old) = old {
            unreported.push(old.end().await);
        }
        Ok(share)
    }

    /// Counts ended shares in the store; what fails is kept for the next time,
    /// and keeps no other from being counted.
    async fn report(&self, unreported: &mut Vec<Report>) {
        let mut failed = Vec::new();
        for report in unreported.drain(..) {
            let Report {
                broadcast,
                allocation,
                sent,
            } = report;
            let counted = self.store.cleanup_allocation(broadcast, allocation, sent);
            match counted.await {
                Err(error) if !error.is_not_found() => {
                    tracing::warn!(%broadcast, error = %crate::chain(&error), "cannot count what was sent of a broadcast");
                    failed.push(report);
                }
                _ => {}
            }
        }
        let too_many = failed.len().saturating_sub(MOST_UNREPORTED);
        failed.drain(..too_many);
        *unreported = failed;
    }

    fn with<T>(&self, use_current: impl FnOnce(&mut Current) -> T) -> T {
        use_current(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
