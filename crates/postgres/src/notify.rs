//! Hints between servers: for whom messages were stored. Everything works
//! without them, only later.
//!
//! Hints go out after the commit and in batches, on a connection of their own:
//! as part of a transaction each would wait for all the others.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fleethold_store::retry::Backoff;
use fleethold_store::{ClientId, Random};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::AsyncMessage;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pool::Connections;
use crate::query::TEXT;

/// Hints that wait to be sent; more are dropped.
const WAITING: usize = 10_000;
/// Hints that wait for a reader; a slow one misses some.
const UNREAD: usize = 10_000;
/// A notification has at most 8,000 bytes.
const BATCH: usize = 400;
/// For so long, waits between attempts to connect grow.
const GROWING: Duration = Duration::from_secs(60);

/// The connection that sends and hears hints.
#[derive(Debug)]
pub(crate) struct Hints {
    queue: mpsc::Sender<ClientId>,
    heard: Mutex<Option<broadcast::Sender<ClientId>>>,
    task: JoinHandle<()>,
}

impl Hints {
    pub(crate) fn start(connections: &Connections, random: &std::sync::Arc<Random>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        let (heard, _) = broadcast::channel(UNREAD);
        let task = tokio::spawn(run(
            connections.clone(),
            std::sync::Arc::clone(random),
            waiting,
            heard.clone(),
        ));
        Self {
            queue,
            heard: Mutex::new(Some(heard)),
            task,
        }
    }

    /// Tells other servers that messages for these clients were stored.
    pub(crate) fn tell(&self, clients: impl IntoIterator<Item = ClientId>) {
        for client in clients {
            // A hint that finds no room may be missing.
            let _ = self.queue.try_send(client);
        }
    }

    pub(crate) fn subscribe(&self) -> BoxStream<'static, ClientId> {
        let receiver = self.heard().as_ref().map(broadcast::Sender::subscribe);
        stream::unfold(receiver, |receiver| async move {
            let mut receiver = receiver?;
            loop {
                match receiver.recv().await {
                    Ok(client) => return Some((client, Some(receiver))),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    pub(crate) fn stop(&self) {
        self.task.abort();
        *self.heard() = None;
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Option<broadcast::Sender<ClientId>>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    connections: Connections,
    random: std::sync::Arc<Random>,
    mut waiting: mpsc::Receiver<ClientId>,
    heard: broadcast::Sender<ClientId>,
) {
    // Servers hear their own hints, too; this tells them apart.
    let own = format!("{:016x}", random.next_u64());
    let mut backoff = Backoff::new(&random, GROWING);
    loop {
        match serve(&connections, &own, &mut waiting, &heard).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "the connection for hints is lost"),
        }
        let delay = backoff.next_delay().unwrap_or_else(|| {
            backoff = Backoff::new(&random, GROWING);
            Duration::from_secs(2)
        });
        sleep(delay).await;
    }
}

/// Sends and hears hints until the connection breaks; returns when nobody sends.
async fn serve(
    connections: &Connections,
    own: &str,
    waiting: &mut mpsc::Receiver<ClientId>,
    heard: &broadcast::Sender<ClientId>,
) -> Result<(), tokio_postgres::Error> {
    let ended = CancellationToken::new();
    let client = connections
        .connect(hear(own, heard, ended.clone().drop_guard()))
        .await?;
    client.batch_execute(LISTEN).await?;
    let mut clients = Vec::new();
    loop {
        tokio::select! {
            count = waiting.recv_many(&mut clients, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
            }
            () = ended.cancelled() => {
                // Asks the broken connection for its error.
                client.batch_execute(LISTEN).await?;
            }
        }
        if clients.is_empty() {
            continue;
        }
        clients.sort_unstable();
        clients.dedup();
        let mut payload = own.to_owned();
        for client in clients.drain(..) {
            payload.push_str(&client.to_string());
        }
        client.execute_typed(NOTIFY, &[(&payload, TEXT)]).await?;
    }
}

/// Hands on the hints of others; `guard` is dropped with the connection.
fn hear(
    own: &str,
    heard: &broadcast::Sender<ClientId>,
    guard: DropGuard,
) -> impl FnMut(AsyncMessage) + Send + 'static {
    let (own, heard) = (own.to_owned(), heard.clone());
    move |message| {
        let _alive = &guard;
        let AsyncMessage::Notification(notification) = message else {
            return;
        };
        let Some((from, clients)) = notification.payload().split_at_checked(16) else {
            return;
        };
        if from == own {
            return;
        }
        for client in clients.as_bytes().chunks(16) {
            let client = std::str::from_utf8(client)
                .ok()
                .and_then(|text| text.parse().ok());
            // Nobody may listen.
            let _ = client.map(|client: ClientId| heard.send(client));
        }
    }
}

const LISTEN: &str = "\
-- listen
LISTEN fleethold_wakeups";

const NOTIFY: &str = "\
-- notify
SELECT pg_notify('fleethold_wakeups', $1)";
