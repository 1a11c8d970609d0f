//! The start of a stream: its first record decides whether there is one
//! (protocol specification section 2.7).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::HANDLING_LIMIT;
use super::Shared;
use super::body::{Encoding, PlainBody};
use super::connection::Connection;
use super::framing::{RecordError, RecordReader};
use super::reply::{Refusal, Reply, octets, peer};
use super::session::{GIVE_BACK_LIMIT, Session};
use crate::contacts::{Contact, ContactKind, Delivery};
use crate::metrics::{Exchange, PollType};
use crate::wire;

/// How long the agent may take for its first record.
const FIRST_RECORD_LIMIT: Duration = Duration::from_secs(3 * 60);

/// How many frames wait between a stream and its connection.
const WAITING_FRAMES: usize = 2;

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Body(error) => error.into(),
            error => Self::bad_request(error.to_string()),
        }
    }
}

/// Answers the request for a stream once its first record is accepted; a task
/// of its own keeps the stream from then on.
pub(super) async fn start(
    connection: &Connection,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let metrics = &connection.shared.contacts.engine.metrics;
    let mut exchange = metrics.exchange(PollType::StreamStart);
    match begin(connection, request, &mut exchange).await {
        Ok((session, records, frames)) => {
            exchange.answers(StatusCode::OK);
            let session = session.measured_from(exchange);
            connection.shared.tasks.spawn(session.run(records));
            Ok(octets(frames))
        }
        Err(refusal) => {
            exchange.answers(refusal.status());
            Err(refusal)
        }
    }
}

async fn begin(
    connection: &Connection,
    request: Request<Incoming>,
    measured: &mut Exchange,
) -> Result<(Session, RecordReader<Incoming>, Frames), Refusal> {
    let started = Instant::now();
    let peer = peer(connection, request.headers())?;
    let encoding = Encoding::of(request.headers())?;

    let shared = &connection.shared;
    let body = PlainBody::new(request.into_body(), encoding);
    let mut records = RecordReader::new(body, peer.client, shared.budget.clone());
    let first = async {
        records.magic().await?;
        records.next().await
    };
    let first = shared.waiting.arrival(first);
    let first = tokio::time::timeout(FIRST_RECORD_LIMIT, first)
        .await
        .map_err(|_| Refusal::bad_request("the first record took too long"))??
        .ok_or_else(|| Refusal::bad_request("the stream has no record"))?;
    measured.has_read(first.bytes.len());
    let record = wire::decode_record(first.bytes).map_err(|error| {
        Refusal::bad_request(format!("the first record is no contact: {error}"))
    })?;

    // Before messages are fetched, or one that comes in between would wait.
    let wake_ups = shared.contacts.engine.streams.register(peer.client);
    let exchange = async {
        let contact = shared
            .contacts
            .begin(peer, record, ContactKind::Stream)
            .await?;
        Ok::<_, Refusal>(Begun::take_messages(Arc::new(contact), shared).await)
    };
    let begun = tokio::time::timeout(HANDLING_LIMIT, Box::pin(exchange))
        .await
        .map_err(|_| {
            let reason = format!(
                "a stream's start took more than {} s",
                HANDLING_LIMIT.as_secs()
            );
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
        })??;
    drop(first.charge);
    let (contact, delivery) = begun.keep();
    measured.set_cache_hit(contact.cache_hit());

    let (sender, frames) = mpsc::channel(WAITING_FRAMES);
    let session = Session::new(
        Arc::clone(shared),
        contact,
        wake_ups,
        sender,
        started,
        delivery,
    );
    Ok((session, records, Frames(frames)))
}

/// A stream that has messages and no session yet: dropped, it gives them back.
struct Begun {
    parts: Option<(Arc<Contact>, Delivery)>,
    shared: Arc<Shared>,
}

impl Begun {
    /// Takes the first messages, in a task of its own: an agent that hangs up, or
    /// a limit of time, would otherwise leave claims that nobody knows of.
    async fn take_messages(contact: Arc<Contact>, shared: &Arc<Shared>) -> Self {
        let (sender, begun) = oneshot::channel();
        let task = {
            let (contact, shared) = (Arc::clone(&contact), Arc::clone(shared));
            async move {
                // The record is accepted: the session tries again.
                let delivery = contact.take_messages().await.unwrap_or_else(|error| {
                    tracing::warn!(client = %contact.client(), %error, "a stream begins without messages");
                    Delivery {
                        more: true,
                        ..Delivery::default()
                    }
                });
                let parts = Some((contact, delivery));
                // Nobody waits any more: what comes back is dropped, too.
                drop(sender.send(Self { parts, shared }));
            }
        };
        shared.tasks.spawn(task);
        begun.await.unwrap_or_else(|_| {
            tracing::error!("taking the first messages of a stream panicked");
            let delivery = Delivery {
                more: true,
                ..Delivery::default()
            };
            Self {
                parts: Some((contact, delivery)),
                shared: Arc::clone(shared),
            }
        })
    }

    fn keep(mut self) -> (Arc<Contact>, Delivery) {
        self.parts.take().expect("taken once")
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some((contact, _)) = self.parts.take() {
            let give_back = async move {
                let give_back = contact.give_back();
                let _in_vain = tokio::time::timeout(GIVE_BACK_LIMIT, give_back).await;
            };
            self.shared.tasks.spawn(give_back);
        }
    }
}

/// The answer to a stream: the frames of its session.
struct Frames(mpsc::Receiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|frame| frame.map(|bytes| Ok(Frame::data(bytes))))
    }
}
