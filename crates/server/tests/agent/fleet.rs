//! Many agents at once, each on an open stream, and what of broadcasts they get.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use fleethold_proto::fleetspeak::ContactData;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use super::{Agent, Authority, StreamOptions, acknowledgement};

/// How many agents connect at the same time.
const CONNECTING: usize = 32;

/// Agents that acknowledge what they get, until the fleet is dropped.
pub(crate) struct Fleet {
    log: Arc<Log>,
    _agents: JoinSet<()>,
}

#[derive(Default)]
struct Log {
    /// Who got a message when, by its type.
    arrivals: Mutex<BTreeMap<String, Vec<(usize, Instant)>>>,
    changes: watch::Sender<()>,
    ended: Mutex<usize>,
}

impl Fleet {
    /// Opens a stream for each of so many new agents; those with an odd number
    /// have the label `odd`.
    pub(crate) async fn open(server: SocketAddr, authority: &Authority, count: usize) -> Self {
        let log = Arc::new(Log::default());
        let places = Arc::new(Semaphore::new(CONNECTING));
        let mut agents = JoinSet::new();
        let mut opened = Vec::new();
        for number in 0..count {
            let mut agent = Agent::new(server, authority);
            if number % 2 == 1 {
                agent.labels.push("odd".to_owned());
            }
            let place = Arc::clone(&places).acquire_owned().await.unwrap();
            let (ready, is_open) = oneshot::channel();
            opened.push(is_open);
            let log = Arc::clone(&log);
            agents.spawn(async move {
                let mut stream = agent.stream(StreamOptions::default()).await;
                drop(place);
                let first = std::mem::take(&mut stream.first);
                log.note(number, &first);
                ready.send(()).unwrap();
                while let Some(frame) = stream.next_frame().await {
                    log.note(number, &frame);
                    if !frame.messages.is_empty() {
                        let ids = frame.messages.iter().map(|message| &message.message_id);
                        stream.send_contact(&ContactData {
                            messages: ids.map(acknowledgement).collect(),
                            ..ContactData::default()
                        });
                    }
                }
                *log.ended.lock().unwrap() += 1;
                log.changes.send_replace(());
            });
        }
        for is_open in opened {
            is_open.await.expect("an agent cannot open its stream");
        }
        Self {
            log,
            _agents: agents,
        }
    }

    /// Waits until agents got so many messages of this type, or a stream ended.
    pub(crate) async fn wait_for(&self, message_type: &str, count: usize) {
        let mut changes = self.log.changes.subscribe();
        while self.arrivals(message_type).len() < count {
            assert_eq!(self.ended(), 0, "streams ended");
            changes.changed().await.unwrap();
        }
    }

    /// Returns who got a message of this type when, in that order.
    pub(crate) fn arrivals(&self, message_type: &str) -> Vec<(usize, Instant)> {
        let arrivals = self.log.arrivals();
        arrivals.get(message_type).cloned().unwrap_or_default()
    }

    /// Returns how many streams have ended.
    pub(crate) fn ended(&self) -> usize {
        *self.log.ended.lock().unwrap()
    }
}

impl Log {
    fn arrivals(&self) -> MutexGuard<'_, BTreeMap<String, Vec<(usize, Instant)>>> {
        self.arrivals.lock().unwrap()
    }

    fn note(&self, agent: usize, frame: &ContactData) {
        if frame.messages.is_empty() {
            return;
        }
        let now = Instant::now();
        for message in &frame.messages {
            let message_type = message.message_type.clone();
            let mut arrivals = self.arrivals();
            arrivals.entry(message_type).or_default().push((agent, now));
        }
        self.changes.send_replace(());
    }
}
