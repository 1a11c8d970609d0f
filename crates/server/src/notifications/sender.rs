//! Tells other servers about news for clients whose streams end there.
//!
//! Whoever has news puts it into a short queue and goes on. One task looks up
//! where the clients are, many at a time; each other server has a task of its
//! own, so that a slow one delays nobody else. A notification that is lost only
//! delays a message until the stream's next look at the store.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fleethold_proto::fleetspeak::server::Client;
use fleethold_store::clock::{epoch_nanos, timestamp_epoch_nanos};
use fleethold_store::{ClientId, Clock, Store};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::address::is_reachable;
use super::call::{MOST_ENTRIES, News};
use super::peer::Peer;
use crate::limits::Notice;
use crate::metrics::Metrics;

/// How much news may wait to be looked up.
const MOST_QUEUED: usize = 10_000;

/// How many clients are looked up at once, and how long that may take.
const MOST_LOOKED_UP: usize = 500;
const LOOK_UP_LIMIT: Duration = Duration::from_secs(10);

/// How long after its contact a client is assumed to be where it was: no stream
/// sends messages for longer.
pub(crate) const PRESENCE: Duration = Duration::from_secs(10 * 60);

/// How many other servers are told at a time, and how much news waits for each.
const MOST_PEERS: usize = 256;
const MOST_PENDING: usize = 10_000;

/// The pauses after a server did not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where news for clients of other servers is left.
pub(crate) struct Notifier {
    queue: mpsc::Sender<(ClientId, News)>,
    metrics: Arc<Metrics>,
    _task: AbortOnDropHandle<()>,
}

impl Notifier {
    /// Begins to send what the queue gets; `own` is this server's address.
    pub(super) fn start(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        peer: impl Fn(String) -> Peer + Send + Sync + 'static,
        own: Option<String>,
    ) -> Self {
        let (queue, news) = mpsc::channel(MOST_QUEUED);
        let sender = Sender {
            store,
            clock,
            metrics: Arc::clone(&metrics),
            peer: Box::new(peer),
            own,
            peers: HashMap::new(),
            failed: Arc::default(),
        };
        Self {
            queue,
            metrics,
            _task: AbortOnDropHandle::new(tokio::spawn(sender.run(news))),
        }
    }

    /// Tells the server where the client is, soon and in the background.
    pub(crate) fn tell(&self, client: ClientId, news: News) {
        if self.queue.try_send((client, news)).is_err() {
            self.metrics.notification_sent("dropped", 1);
        }
    }
}

struct Sender {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    peer: Box<dyn Fn(String) -> Peer + Send + Sync>,
    own: Option<String>,
    peers: HashMap<String, PeerTask>,
    failed: Arc<Notice>,
}

impl Sender {
    async fn run(mut self, mut news: mpsc::Receiver<(ClientId, News)>) {
        let mut batch = Vec::new();
        while news.recv_many(&mut batch, MOST_LOOKED_UP).await > 0 {
            let mut by_client = BTreeMap::new();
            for (client, news) in batch.drain(..) {
                add(&mut by_client, client, news);
            }
            self.look_up(by_client).await;
        }
    }

    async fn look_up(&mut self, news: BTreeMap<ClientId, News>) {
        let ids: Vec<_> = news.keys().copied().collect();
        let clients = match timeout(LOOK_UP_LIMIT, self.store.list_clients(&ids)).await {
            Ok(Ok(clients)) => clients,
            result => {
                self.count("dropped", ids.len());
                if let Some(others) = self.failed.due(Instant::now()) {
                    let error = match result {
                        Ok(Err(error)) => crate::chain(&error),
                        _ => "the store took too long".to_owned(),
                    };
                    tracing::warn!(error, others, "cannot look up where streams are");
                }
                return;
            }
        };
        let now = self.clock.now();
        for client in &clients {
            let Ok(id) = ClientId::try_from(&client.client_id[..]) else {
                continue;
            };
            let address = present_at(client, now)
                .filter(|address| Some(*address) != self.own.as_deref())
                .filter(|address| is_reachable(address));
            if let (Some(address), Some(news)) = (address, news.get(&id)) {
                self.pass_on(address, id, *news);
            }
        }
    }

    fn pass_on(&mut self, address: &str, client: ClientId, news: News) {
        if !self.peers.contains_key(address) {
            if self.peers.len() >= MOST_PEERS {
                self.peers.retain(|_, peer| !peer.shared.is_idle());
            }
            if self.peers.len() >= MOST_PEERS {
                self.count("dropped", 1);
                return;
            }
            let peer = (self.peer)(address.to_owned());
            let peer = PeerTask::start(peer, &self.metrics, &self.failed);
            self.peers.insert(address.to_owned(), peer);
        }
        let peer = &self.peers[address];
        if !peer.shared.add(client, news) {
            self.count("dropped", 1);
        }
    }

    fn count(&self, result: &'static str, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.metrics.notification_sent(result, count);
    }
}

/// Returns where the client's stream ends, if it may still be open.
fn present_at(client: &Client, now: SystemTime) -> Option<&str> {
    let contact = timestamp_epoch_nanos(client.last_contact_time.as_ref()?)?;
    let presence = i64::try_from(PRESENCE.as_nanos()).expect("some minutes");
    let is_recent = epoch_nanos(now).saturating_sub(contact) < presence;
    let address = client.last_contact_streaming_to.as_str();
    (is_recent && !address.is_empty()).then_some(address)
}

/// Adds news; what needs more wins.
fn add(all: &mut BTreeMap<ClientId, News>, client: ClientId, news: News) {
    let entry = all.entry(client).or_insert(news);
    *entry = (*entry).max(news);
}

/// Another server and the task that tells it.
struct PeerTask {
    shared: Arc<Pending>,
    _task: AbortOnDropHandle<()>,
}

impl PeerTask {
    fn start(peer: Peer, metrics: &Arc<Metrics>, failed: &Arc<Notice>) -> Self {
        let shared = Arc::<Pending>::default();
        let task = tell(
            peer,
            Arc::clone(&shared),
            Arc::clone(metrics),
            Arc::clone(failed),
        );
        Self {
            shared,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }
}

/// What waits for one server.
#[derive(Default)]
struct Pending {
    state: Mutex<State>,
    added: Notify,
}

#[derive(Default)]
struct State {
    news: BTreeMap<ClientId, News>,
    sending: bool,
}

impl Pending {
    /// Returns whether there was room.
    fn add(&self, client: ClientId, news: News) -> bool {
        let mut state = self.state();
        if state.news.len() >= MOST_PENDING && !state.news.contains_key(&client) {
            return false;
        }
        add(&mut state.news, client, news);
        self.added.notify_one();
        true
    }

    /// Takes as much as one call carries.
    fn take(&self, most: usize) -> Vec<(ClientId, News)> {
        let mut state = self.state();
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(entry) = state.news.pop_first()
        {
            taken.push(entry);
        }
        state.sending = !taken.is_empty();
        taken
    }

    fn is_idle(&self) -> bool {
        let state = self.state();
        state.news.is_empty() && !state.sending
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells one server what is pending for it, for ever.
async fn tell(mut peer: Peer, pending: Arc<Pending>, metrics: Arc<Metrics>, failed: Arc<Notice>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let news = pending.take(MOST_ENTRIES);
        if news.is_empty() {
            pending.added.notified().await;
            continue;
        }
        let told = peer.tell(&news).await;
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        metrics.notification_sent("sent", count(told.sent));
        let Some(error) = told.error else {
            pause = FIRST_PAUSE;
            continue;
        };
        metrics.notification_sent("failed", count(news.len() - told.sent));
        if let Some(others) = failed.due(Instant::now()) {
            tracing::warn!(
                server = peer.address(),
                error,
                others,
                "cannot notify a server"
            );
        }
        // What comes meanwhile goes with the next try.
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fleethold_store::clock::timestamp;
    use fleethold_store::{ClientData, ClientStore, ContactData, ManualClock, MemoryStore, Random};
    use http_body_util::{BodyExt, Full};

    use super::super::call;
    use super::super::peer::Caller;
    use super::*;
    use crate::side_port::SidePort;

    #[tokio::test]
    async fn news_for_many_clients_of_a_server_goes_in_one_call() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (received, mut calls) = mpsc::unbounded_channel();
        let _port = SidePort::start(listener, "test", 10, move |request| {
            let received = received.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                received.send(body).unwrap();
                http::Response::new(Full::<Bytes>::default())
            }
        });
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(1_000_000));
        let store = MemoryStore::new(Arc::clone(&clock), Arc::new(Random::seeded(1)));
        let clients: Vec<_> = (0_u64..300)
            .map(|number| ClientId::new(number.to_be_bytes()))
            .collect();
        for client in &clients {
            let data = ClientData::default();
            store.add_client(*client, &data).await.unwrap();
            let contact = ContactData {
                client_id: *client,
                nonce_sent: 1,
                nonce_received: 0,
                addr: String::new(),
                client_clock: None,
                streaming_to: Some(address.clone()),
                labels: Vec::new(),
            };
            store.record_client_contact(&contact).await.unwrap();
        }
        let caller = Caller::new(Arc::clone(&clock), None);
        let notifier = Notifier::start(
            Arc::new(store),
            clock,
            Arc::new(Metrics::new(true)),
            move |address| Peer::new(address, caller.clone()),
            None,
        );
        for news in [News::Messages, News::Client] {
            for client in &clients {
                notifier.tell(*client, News::Messages);
                notifier.tell(*client, news);
            }
            // The looker looks up so many at once.
            let mut told = Vec::new();
            let mut count = 0;
            while told.len() < clients.len() {
                let body = calls.recv().await.unwrap();
                told.extend(call::read(&body).unwrap());
                count += 1;
            }
            let expected = clients.iter().map(|client| (*client, news));
            assert_eq!(told, expected.collect::<Vec<_>>());
            assert!(count <= 2, "{count} calls");
        }
    }

    #[test]
    fn client_is_where_its_last_contact_was_for_ten_minutes() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let seen = |ago: u64, at: &str| {
            let client = Client {
                last_contact_time: Some(timestamp(now - Duration::from_secs(ago))),
                last_contact_streaming_to: at.to_owned(),
                ..Client::default()
            };
            present_at(&client, now).map(str::to_owned)
        };
        assert_eq!(seen(0, "a:1"), Some("a:1".to_owned()));
        assert_eq!(seen(599, "a:1"), Some("a:1".to_owned()));
        assert_eq!(seen(600, "a:1"), None);
        assert_eq!(seen(0, ""), None);
        let never = Client {
            last_contact_streaming_to: "a:1".to_owned(),
            ..Client::default()
        };
        assert_eq!(present_at(&never, now), None);
    }

    #[test]
    fn news_for_one_server_collapses_and_has_a_limit() {
        let pending = Pending::default();
        assert!(pending.is_idle());
        let client = |number: usize| ClientId::new(number.to_be_bytes());
        for number in 0..MOST_PENDING {
            assert!(pending.add(client(number), News::Messages));
        }
        assert!(!pending.add(client(MOST_PENDING), News::Messages));
        assert!(pending.add(client(0), News::Client), "it waits already");
        assert!(pending.add(client(0), News::Messages));
        let taken = pending.take(2);
        let expected = [(client(0), News::Client), (client(1), News::Messages)];
        assert_eq!(taken, expected, "what needs more wins");
        assert_eq!(pending.take(usize::MAX).len(), MOST_PENDING - 2);
        assert!(!pending.is_idle(), "it is being sent");
        assert!(pending.take(1).is_empty());
        assert!(pending.is_idle());
    }
}
