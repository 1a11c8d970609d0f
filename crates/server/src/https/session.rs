//! The life of a stream after its first exchange: records are accepted and
//! acknowledged, messages go out, until one side or the time ends it
//! (protocol specification section 2.7).

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::Message;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use http::StatusCode;
use http_body::Body;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::body::BodyError;
use super::framing::{self, Record, RecordError, RecordReader};
use super::{HANDLING_LIMIT, Shared};
use crate::contacts::{Accepted, Contact, ContactError, Delivery};
use crate::limits::Refused;
use crate::metrics::{Exchange, PollType};
use crate::streams::StreamHandle;
use crate::wire;

/// What one stream may have in processing before its agent has to wait. A
/// record that has begun to arrive is still read to its end.
const MOST_RECORDS: usize = 8;
const MOST_RECORD_BYTES: usize = 8 * 1024 * 1024;

/// How many frames may wait for an agent before its records are no longer read.
const MOST_OUTBOX: usize = 64;

/// Wake-ups within this time lead to one look at the store.
const COALESCE: Duration = Duration::from_millis(2);

/// How long an agent has to make itself a new key before it has to reconnect.
const REKEY_TIME: Duration = Duration::from_secs(1);

/// How long records that were received may be processed after the end.
const OVERRUN: Duration = Duration::from_secs(15);

/// How long a broken stream waits for the store to take its messages back.
pub(super) const GIVE_BACK_LIMIT: Duration = Duration::from_secs(5);

/// The longest pause before messages are fetched again after an error.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

type FetchFuture = Pin<Box<dyn Future<Output = Result<Delivery, ContactError>> + Send>>;
type RecordFuture = Pin<Box<dyn Future<Output = (Result<Accepted, Failure>, usize)> + Send>>;

/// Why a record was not accepted.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("a record is no contact")]
    Decode(#[from] wire::WireError),
    #[error("a record was not processed in time")]
    Late,
    #[error(transparent)]
    Contact(#[from] ContactError),
}

/// One open stream.
pub(super) struct Session {
    shared: Arc<Shared>,
    contact: Arc<Contact>,
    wake_ups: StreamHandle,
    frames: mpsc::Sender<Bytes>,
    /// What is written, and how many bytes of it.
    writing: Option<(Exchange, usize)>,
    /// Frames that do not fit into the channel yet.
    outbox: VecDeque<Bytes>,
    /// Since when the agent takes no frame.
    blocked_since: Option<Instant>,
    processing: FuturesOrdered<RecordFuture>,
    processing_bytes: usize,
    /// Records of an agent that sends too many messages wait.
    read_from: Option<Instant>,
    accepted: u64,
    fetch: Option<FetchFuture>,
    fetch_at: Option<Instant>,
    last_fetch: Instant,
    failed_fetches: i32,
    /// When to look for messages of which nobody told us.
    look_at: Option<Instant>,
    /// Fetched and not yet in a frame.
    messages: VecDeque<Message>,
    sending: Sending,
    asked_to_leave: bool,
    /// The agent was gone before it took all frames.
    lost: bool,
    done_sending_at: Instant,
    end_at: Instant,
    /// Set when no more records are read: the latest end of the session.
    finish_by: Option<Instant>,
}

/// Whether messages go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Open,
    /// Nothing is fetched any more; what was fetched is still sent.
    Closing,
    /// The agent knows.
    Done,
}

/// Something the session waits for.
enum Event {
    Time,
    AgentGone,
    Processed(Result<Accepted, Failure>, usize),
    FrameSent,
    Fetched(Result<Delivery, ContactError>),
    WokenUp,
    Record(Result<Option<Record>, RecordError>),
    Drain,
    End,
}

impl Session {
    /// Prepares a session whose first frame carries the nonce and messages of `delivery`.
    pub(super) fn new(
        shared: Arc<Shared>,
        contact: Arc<Contact>,
        wake_ups: StreamHandle,
        frames: mpsc::Sender<Bytes>,
        started: Instant,
        delivery: Delivery,
    ) -> Self {
        let options = &shared.options;
        let lifetime = &options.stream_lifetime;
        let spread = lifetime.end.saturating_sub(lifetime.start);
        let end_at =
            started + lifetime.start + spread.mul_f64(shared.contacts.engine.random.unit());
        let done_sending_at = end_at
            .checked_sub(options.done_sending_before_end)
            .unwrap_or(started);
        let mut session = Self {
            contact,
            wake_ups,
            frames,
            writing: None,
            outbox: VecDeque::new(),
            blocked_since: None,
            processing: FuturesOrdered::new(),
            processing_bytes: 0,
            read_from: None,
            accepted: 0,
            fetch: None,
            fetch_at: None,
            last_fetch: started,
            failed_fetches: 0,
            look_at: None,
            messages: VecDeque::new(),
            sending: Sending::Open,
            asked_to_leave: false,
            lost: false,
            done_sending_at,
            end_at,
            finish_by: None,
            shared,
        };
        session.look_again();
        session.deliver(delivery);
        // The agent waits for this frame, with or without messages.
        session.outbox.push_back(framing::delivery(
            session.contact.nonce(),
            &mut session.messages,
        ));
        session
    }

    /// Ends the measurement of the stream's start with its first frame.
    pub(super) fn measured_from(mut self, start: Exchange) -> Self {
        let bytes = self.outbox.front().map_or(0, Bytes::len);
        self.writing = Some((start, bytes));
        self
    }

    /// Keeps the stream until it ends.
    pub(super) async fn run<B>(mut self, mut records: RecordReader<B>)
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let abort = self.shared.phases.abort.clone();
        let client = self.contact.client();
        let _open = self.shared.contacts.engine.metrics.open_stream();
        tracing::debug!(%client, "a stream began");
        let reason = tokio::select! {
            reason = self.exchange(&mut records) => reason,
            () = abort.cancelled() => EndReason::Stop,
        };
        drop(records);
        if !self.agent_has_all(&reason) {
            let give_back = Box::pin(self.give_back());
            if tokio::time::timeout(GIVE_BACK_LIMIT, give_back)
                .await
                .is_err()
            {
                tracing::warn!(%client, "gave no messages back; they wait for the end of their claim");
            }
        }
        tracing::debug!(%client, records = self.accepted, %reason, "a stream ended");
    }

    /// Returns whether everything that was claimed reached the agent: it waits
    /// for the end of the messages before it leaves a stream that asks it to.
    fn agent_has_all(&self, reason: &EndReason) -> bool {
        self.asked_to_leave && !self.lost && matches!(reason, EndReason::Agent)
    }

    async fn give_back(&mut self) {
        // Dropped, it might have claimed already.
        if let Some(fetch) = self.fetch.take() {
            drop(fetch.await);
        }
        self.contact.give_back().await;
    }

    async fn exchange<B>(&mut self, records: &mut RecordReader<B>) -> EndReason
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let mut reason = EndReason::Agent;
        loop {
            self.prepare();
            let finished = self.processing.is_empty() && self.outbox.is_empty();
            if self.finish_by.is_some() && finished {
                return reason;
            }
            match self.next_event(records).await {
                Event::Time => {
                    let now = Instant::now();
                    if self.finish_by.is_some_and(|end| end <= now) {
                        return reason;
                    }
                    if self.frames_stuck_until().is_some_and(|end| end <= now) {
                        self.shared.refused(Refused::SlowReader);
                        return EndReason::SlowReader;
                    }
                    if self.look_at.is_some_and(|at| at <= now) {
                        self.look_again();
                        self.fetch_at.get_or_insert(now);
                    }
                    if self.finish_by.is_none() && self.end_at <= now {
                        reason = EndReason::Lifetime;
                        self.finish();
                    }
                    if self.sending == Sending::Open && self.done_sending_at <= now {
                        self.sending = Sending::Closing;
                    }
                }
                Event::AgentGone => {
                    // What it has sent is processed, though nobody will hear of it.
                    self.finish();
                    self.lost |= !self.outbox.is_empty() || !self.messages.is_empty();
                    self.outbox.clear();
                    self.messages.clear();
                }
                Event::Processed(Ok(accepted), bytes) => {
                    self.processing_bytes -= bytes;
                    self.accepted += 1;
                    self.push(framing::ack(self.accepted));
                    self.slow_down(accepted.messages);
                    if accepted.deliver {
                        self.fetch_at = Some(Instant::now());
                    }
                }
                Event::Processed(Err(failure), _) => {
                    // No later record may be acknowledged: agents count acks.
                    reason = EndReason::Failed(failure.to_string());
                    self.processing.clear();
                    self.finish();
                }
                Event::FrameSent => {
                    self.blocked_since = (!self.outbox.is_empty()).then(Instant::now);
                    if self.outbox.is_empty()
                        && let Some((mut exchange, bytes)) = self.writing.take()
                    {
                        exchange.has_written(bytes);
                    }
                }
                Event::Fetched(result) => {
                    self.fetch = None;
                    match result {
                        Ok(delivery) => self.deliver(delivery),
                        Err(error) => self.fetch_later(&error),
                    }
                }
                Event::WokenUp => {
                    let soon = Instant::now().max(self.last_fetch + COALESCE);
                    self.fetch_at = Some(self.fetch_at.map_or(soon, |at| at.min(soon)));
                }
                Event::Record(Ok(Some(record))) => self.process(record),
                // Agents just close the connection.
                Event::Record(Ok(None) | Err(RecordError::Body(BodyError::Aborted(_)))) => {
                    self.finish();
                }
                Event::Record(Err(error)) => {
                    if let RecordError::Body(error) = &error
                        && let Some(limit) = error.refused()
                    {
                        self.shared.refused(limit);
                    }
                    reason = EndReason::Failed(error.to_string());
                    self.finish();
                }
                Event::Drain => self.sending = Sending::Closing,
                Event::End => {
                    reason = EndReason::Stop;
                    self.finish();
                }
            }
        }
    }

    /// Does what needs no waiting: makes the next frame, starts the next fetch.
    fn prepare(&mut self) {
        if !self.outbox.is_empty() || self.sending == Sending::Done {
            return;
        }
        if !self.messages.is_empty() {
            let frame = framing::delivery(self.contact.nonce(), &mut self.messages);
            let metrics = &self.shared.contacts.engine.metrics;
            let mut exchange = metrics.exchange(PollType::StreamToClient);
            exchange.answers(StatusCode::OK);
            self.writing = Some((exchange, frame.len()));
            self.push(frame);
        } else if self.sending == Sending::Closing && self.fetch.is_none() {
            self.sending = Sending::Done;
            self.asked_to_leave = true;
            self.push(framing::done_sending());
        } else if self.may_fetch() && self.fetch_at.is_some_and(|at| at <= Instant::now()) {
            let contact = Arc::clone(&self.contact);
            self.fetch_at = None;
            self.last_fetch = Instant::now();
            self.fetch = Some(Box::pin(async move { contact.take_messages().await }));
        }
    }

    async fn next_event<B>(&mut self, records: &mut RecordReader<B>) -> Event
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let look = self.next_look();
        // Each record becomes a frame: an agent that takes none sends no more.
        let room = self.processing.len() < MOST_RECORDS
            && self.processing_bytes < MOST_RECORD_BYTES
            && self.outbox.len() < MOST_OUTBOX
            && self.read_from.is_none_or(|from| from <= Instant::now());
        let open = self.sending == Sending::Open && self.finish_by.is_none();
        let reading = self.finish_by.is_none();
        let fetch = &mut self.fetch;
        // The order matters: time first, so that a busy agent cannot stop it,
        // and what makes room before what fills it.
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(look) => Event::Time,
            Some((result, bytes)) = self.processing.next(), if !self.processing.is_empty() => {
                Event::Processed(result, bytes)
            }
            permit = self.frames.reserve(), if !self.outbox.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(frame) = self.outbox.pop_front() {
                        permit.send(frame);
                    }
                    Event::FrameSent
                }
                Err(_) => Event::AgentGone,
            },
            () = self.frames.closed(), if reading => Event::AgentGone,
            result = async { fetch.as_mut().expect("checked").await }, if fetch.is_some() => {
                Event::Fetched(result)
            }
            () = self.wake_ups.woken(), if open => Event::WokenUp,
            record = records.next(), if reading && (room || records.is_inside_record()) => {
                Event::Record(record)
            }
            () = self.shared.phases.drain.cancelled(), if open => Event::Drain,
            () = self.shared.phases.end.cancelled(), if reading => Event::End,
        }
    }

    /// Returns when the clock alone makes something to do.
    fn next_look(&self) -> Instant {
        let mut look = self.finish_by.unwrap_or(self.end_at);
        if self.sending == Sending::Open && self.finish_by.is_none() {
            look = look.min(self.done_sending_at);
            look = self.look_at.map_or(look, |at| look.min(at));
        }
        if let Some(at) = self.fetch_at.filter(|_| self.may_fetch()) {
            look = look.min(at);
        }
        if let Some(at) = self.frames_stuck_until() {
            look = look.min(at);
        }
        if let Some(at) = self.read_from.filter(|at| *at > Instant::now()) {
            look = look.min(at);
        }
        look
    }

    /// Fetching waits until the agent has taken what was fetched before.
    fn may_fetch(&self) -> bool {
        self.sending == Sending::Open
            && self.finish_by.is_none()
            && self.fetch.is_none()
            && self.messages.is_empty()
            && self.outbox.is_empty()
    }

    fn frames_stuck_until(&self) -> Option<Instant> {
        let limit = self.shared.limits().write_timeout;
        self.blocked_since.map(|since| since + limit)
    }

    fn push(&mut self, frame: Bytes) {
        if self.frames.is_closed() {
            return;
        }
        if self.outbox.is_empty() {
            self.blocked_since = Some(Instant::now());
        }
        self.outbox.push_back(frame);
    }

    /// Keeps an agent that sends too many messages from sending more: records
    /// that nobody reads fill its connection, and it waits.
    fn slow_down(&mut self, messages: usize) {
        let client = self.contact.client();
        let now = Instant::now();
        let pause = self.shared.gate().agents.accepted(client, messages, now);
        if !pause.is_zero() {
            self.shared.refused(Refused::AgentMessages);
            self.read_from = Some(now + pause);
        }
    }

    /// Starts to process a record; its share of the memory budget lasts as long.
    fn process(&mut self, record: Record) {
        let contact = Arc::clone(&self.contact);
        let bytes = record.bytes.len();
        let metrics = &self.shared.contacts.engine.metrics;
        let mut exchange = metrics.exchange(PollType::StreamFromClient);
        exchange.has_read(bytes);
        self.processing_bytes += bytes;
        self.processing.push_back(Box::pin(async move {
            let _charge = record.charge;
            let accept = async {
                let record = wire::decode_record(record.bytes)?;
                Ok(contact.accept_record(record).await?)
            };
            let result = tokio::time::timeout(HANDLING_LIMIT, accept).await;
            let result = result.unwrap_or(Err(Failure::Late));
            if result.is_ok() {
                exchange.answers(StatusCode::OK);
            }
            (result, bytes)
        }));
    }

    fn deliver(&mut self, delivery: Delivery) {
        self.failed_fetches = 0;
        self.messages.extend(delivery.messages);
        if delivery.more {
            self.fetch_at = Some(Instant::now());
        }
        if delivery.wind_down {
            let done = Instant::now() + REKEY_TIME;
            let rest = self.shared.options.done_sending_before_end;
            self.done_sending_at = self.done_sending_at.min(done);
            self.end_at = self.end_at.min(done + rest);
        }
    }

    /// Sets the time of the next look at the store; streams do not look all at once.
    fn look_again(&mut self) {
        let shared = &self.shared;
        self.look_at = shared.options.store_look.map(|every| {
            let jitter = 0.5 + shared.contacts.engine.random.unit();
            Instant::now() + every.mul_f64(jitter)
        });
    }

    fn fetch_later(&mut self, error: &ContactError) {
        let jitter = 0.1 + 0.1 * self.shared.contacts.engine.random.unit();
        let pause = Duration::from_secs_f64(jitter * 1.5_f64.powi(self.failed_fetches.min(20)));
        self.failed_fetches = self.failed_fetches.saturating_add(1);
        self.fetch_at = Some(Instant::now() + pause.min(LONGEST_PAUSE));
        tracing::warn!(
            client = %self.contact.client(),
            %error,
            "cannot fetch messages for a stream, trying again"
        );
    }

    /// Stops reading; what was received is still processed and acknowledged.
    fn finish(&mut self) {
        self.finish_by
            .get_or_insert_with(|| Instant::now() + OVERRUN);
        if self.sending == Sending::Open {
            self.sending = Sending::Done;
        }
    }
}

/// Why a stream ended, for the log.
enum EndReason {
    Agent,
    Lifetime,
    Stop,
    SlowReader,
    Failed(String),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "the agent closed it",
            Self::Lifetime => "its time was over",
            Self::Stop => "the server stops",
            Self::SlowReader => "the agent does not read",
            Self::Failed(reason) => reason,
        })
    }
}
