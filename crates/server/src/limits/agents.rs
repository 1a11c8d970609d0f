//! What each single agent may do: messages per second, and bytes in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fleethold_store::ClientId;
use tokio::time::Instant;

use super::rate::{self, BURST};

/// How many entries are looked through for ones that mean nothing any more.
const PURGE_AT_LEAST: usize = 1_024;

/// The agents that use up some of what they may. It knows no others: an agent
/// that rests for ten seconds leaves nothing behind.
#[derive(Clone, Debug)]
pub(crate) struct Agents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spacing: Duration,
    most_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<ClientId, Agent>,
    purge_at: usize,
}

#[derive(Debug, Default)]
struct Agent {
    messages_until: Option<Instant>,
    bytes: usize,
}

/// Bytes of an agent that are in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    agents: Agents,
    client: ClientId,
    bytes: usize,
}

impl Agents {
    pub(super) fn new(messages_per_second: u32, most_bytes: usize) -> Self {
        Self(Arc::new(Inner {
            spacing: rate::spacing(messages_per_second),
            most_bytes,
            state: Mutex::default(),
        }))
    }

    /// Counts messages of one contact, or returns how long the agent should
    /// wait. A contact is counted as a whole, so none is ever too large.
    pub(crate) fn messages(
        &self,
        client: ClientId,
        count: usize,
        now: Instant,
    ) -> Result<(), Duration> {
        if count == 0 {
            return Ok(());
        }
        let time = self.time_of(count);
        let mut state = self.state(now);
        let agent = state.agents.entry(client).or_default();
        rate::take(&mut agent.messages_until, time, now)
    }

    /// Counts messages that are already accepted, and returns how long the
    /// agent has to be kept from sending more.
    pub(crate) fn accepted(&self, client: ClientId, count: usize, now: Instant) -> Duration {
        if count == 0 {
            return Duration::ZERO;
        }
        let time = self.time_of(count);
        let mut state = self.state(now);
        let agent = state.agents.entry(client).or_default();
        let until = agent.messages_until.map_or(now, |until| until.max(now)) + time;
        agent.messages_until = Some(until);
        (until - now).saturating_sub(BURST)
    }

    /// Starts to count bytes of an agent.
    pub(crate) fn hold(&self, client: ClientId) -> Held {
        Held {
            agents: self.clone(),
            client,
            bytes: 0,
        }
    }

    fn time_of(&self, count: usize) -> Duration {
        self.0
            .spacing
            .saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
    }

    fn state(&self, now: Instant) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.agents.len() >= state.purge_at.max(PURGE_AT_LEAST) {
            state.agents.retain(|_, agent| {
                agent.bytes > 0 || agent.messages_until.is_some_and(|until| until > now)
            });
            // Twice of what is in use, so that looking costs little per entry.
            state.purge_at = 2 * state.agents.len();
        }
        state
    }
}

impl Held {
    /// Adds bytes that have arrived; `false` if the agent has too many in flight.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        let mut state = self.agents.state(Instant::now());
        let agent = state.agents.entry(self.client).or_default();
        if bytes > self.agents.0.most_bytes.saturating_sub(agent.bytes) {
            return false;
        }
        agent.bytes += bytes;
        self.bytes += bytes;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut state = self.agents.state(Instant::now());
        if let Some(agent) = state.agents.get_mut(&self.client) {
            agent.bytes -= self.bytes;
            if agent.bytes == 0 && agent.messages_until.is_none() {
                state.agents.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ClientId = ClientId::new([1; 8]);
    const OTHER: ClientId = ClientId::new([2; 8]);

    #[test]
    fn s20_agent_that_sends_too_much_waits_and_others_do_not() {
        let agents = Agents::new(10, 100);
        let now = Instant::now();
        agents.messages(ONE, 100, now).unwrap();
        let wait = agents.messages(ONE, 1, now).unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        agents.messages(OTHER, 100, now).unwrap();
        agents.messages(ONE, 1, now + wait).unwrap();
    }

    #[test]
    fn s20_stream_is_paused_as_long_as_its_messages_are_too_many() {
        let agents = Agents::new(10, 100);
        let now = Instant::now();
        assert_eq!(agents.accepted(ONE, 100, now), Duration::ZERO);
        assert_eq!(agents.accepted(ONE, 30, now), Duration::from_secs(3));
        assert_eq!(agents.accepted(OTHER, 30, now), Duration::ZERO);
        let later = now + Duration::from_secs(13);
        assert_eq!(agents.accepted(ONE, 100, later), Duration::ZERO);
    }

    #[test]
    fn bytes_of_an_agent_are_limited_and_come_back() {
        let agents = Agents::new(10, 100);
        let mut first = agents.hold(ONE);
        let mut second = agents.hold(ONE);
        assert!(first.add(60) && second.add(40));
        assert!(!second.add(1));
        assert!(agents.hold(OTHER).add(100));
        drop(first);
        assert!(second.add(60));
        drop(second);
        assert!(agents.0.state.lock().unwrap().agents.is_empty());
    }

    #[test]
    fn s6_agents_that_rest_leave_nothing_behind() {
        let agents = Agents::new(10, 100);
        let mut now = Instant::now();
        for round in 0..10_u32 {
            for number in 0..1_000_u32 {
                let id = ((u64::from(round) << 32) | u64::from(number)).to_be_bytes();
                agents.messages(ClientId::new(id), 10, now).unwrap();
            }
            now += Duration::from_secs(10);
        }
        let known = agents.0.state.lock().unwrap().agents.len();
        assert!(known <= 2 * PURGE_AT_LEAST, "{known}");
    }
}
