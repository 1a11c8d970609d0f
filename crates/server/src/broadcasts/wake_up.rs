//! Waking the open streams when there is something new to send.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use fleethold_store::ClientId;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use crate::streams::Streams;

/// Streams are woken in groups, so that a broadcast does not stop all else:
/// this many in this time, 2,000 a second.
const GROUP: usize = 50;
const PERIOD: Duration = Duration::from_millis(25);

/// Wakes all streams after each news, for ever.
///
/// However fast the news come, the pace is the same.
pub(super) async fn run(news: &Notify, streams: &Streams) {
    let mut due = Due::default();
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = news.notified() => due.add(streams.clients()),
            _ = period.tick(), if !due.0.is_empty() => {
                due.next_group().for_each(|client| { streams.wake(client); });
            }
        }
    }
}

/// Who is to be woken, each once: those that wait for their turn keep it, those
/// that had it get another.
#[derive(Default)]
struct Due(VecDeque<ClientId>);

impl Due {
    fn add(&mut self, clients: Vec<ClientId>) {
        let waiting: HashSet<_> = self.0.iter().copied().collect();
        let others = clients.into_iter();
        self.0
            .extend(others.filter(|client| !waiting.contains(client)));
    }

    fn next_group(&mut self) -> impl Iterator<Item = ClientId> + '_ {
        self.0.drain(..self.0.len().min(GROUP))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn clients(count: u64) -> Vec<ClientId> {
        let numbers = 0..count;
        numbers
            .map(|number| ClientId::new(number.to_be_bytes()))
            .collect()
    }

    #[test]
    fn ten_thousand_streams_are_woken_in_five_seconds_whatever_comes_meanwhile() {
        let all = clients(10_000);
        let mut due = Due::default();
        due.add(all.clone());
        let mut woken = Vec::new();
        for group in 1.. {
            let next: Vec<_> = due.next_group().collect();
            if next.is_empty() {
                break;
            }
            woken.extend(next);
            if group % 10 == 0 && group <= 100 {
                // More news while half of them are woken.
                due.add(all.clone());
            }
            if group == 200 {
                assert_eq!(PERIOD * group, Duration::from_secs(5));
                assert_eq!(woken, all, "nobody has to wait for others' second turn");
            }
        }
        // 5,000 were woken before the latest news, and are woken again.
        assert_eq!(woken.len(), 15_000);
        assert_eq!(woken[10_000..], all[..5_000]);
    }

    #[tokio::test]
    async fn news_wake_each_stream() {
        let streams = Arc::new(Streams::default());
        let handles: Vec<_> = clients(120)
            .into_iter()
            .map(|client| streams.register(client))
            .collect();
        let news = Arc::new(Notify::new());
        let task = tokio::spawn({
            let (news, streams) = (Arc::clone(&news), Arc::clone(&streams));
            async move { run(&news, &streams).await }
        });
        for _ in 0..2 {
            news.notify_one();
            for handle in &handles {
                handle.woken().await;
            }
        }
        task.abort();
    }
}
