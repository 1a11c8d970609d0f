//! Many messages in one call, for a process that implements
//! `fleethold.service.v1.BatchProcessor`.
//!
//! Messages wait in a queue until a call may begin, so the busier the process,
//! the more messages one call carries. A call whose answer blames no message is
//! made again for each of them alone: one bad message costs no other its delivery.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleethold::service::v1::batch_processor_client::BatchProcessorClient;
use fleethold_proto::fleethold::service::v1::{BatchConfig, BatchRequest, Outcome};
use fleethold_proto::fleetspeak::Message;
use fleethold_proto::{Any, Name};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{Class, class, code};

/// Returns whether a service's configuration asks for calls with many messages.
pub(crate) fn is_config(config: &Any) -> bool {
    let name = config.type_url.rsplit('/').next();
    name == Some(&BatchConfig::full_name())
}

/// How much one call carries, and how many calls there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) wait: Duration,
    pub(crate) calls: usize,
}

impl BatchLimits {
    /// Reads the numbers of a configuration.
    pub(crate) fn read(config: &BatchConfig) -> Result<Self, String> {
        let number = |name, value: u64, default: u64, most: u64| match value {
            0 => Ok(default),
            value if value <= most => Ok(value),
            value => Err(format!("`{name}` is {value}; write at most {most}")),
        };
        let count = |number: u64| usize::try_from(number).expect("checked to be small");
        let messages = number("max_messages", config.max_messages.into(), 100, 10_000)?;
        let bytes = number("max_bytes", config.max_bytes, 2 << 20, 64 << 20)?;
        let wait = config.max_wait_milliseconds;
        let wait = number("max_wait_milliseconds", wait.into(), 5, 1_000)?;
        let calls = number("max_calls", config.max_calls.into(), 4, 100)?;
        Ok(Self {
            messages: count(messages),
            bytes: count(bytes),
            wait: Duration::from_millis(wait),
            calls: count(calls),
        })
    }
}

/// The queue of one service; its calls end when it is dropped.
pub(super) struct Batcher {
    queue: mpsc::Sender<Item>,
    caller: Arc<Caller>,
    _calls: AbortOnDropHandle<()>,
}

struct Item {
    message: Message,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

enum Answer {
    Outcome(Result<(), Status>),
    /// The call failed, and this message is perhaps not to blame.
    Alone,
}

impl Batcher {
    /// Starts without a connection; call this inside the runtime.
    pub(super) fn start(channel: Channel, limits: BatchLimits) -> Self {
        let (queue, items) = mpsc::channel(limits.messages);
        let caller = Arc::new(Caller {
            client: BatchProcessorClient::new(channel),
            places: Arc::new(Semaphore::new(limits.calls)),
        });
        let calls = tokio::spawn(run(items, Arc::clone(&caller), limits));
        Self {
            queue,
            caller,
            _calls: AbortOnDropHandle::new(calls),
        }
    }

    /// Hands one message over and returns what became of it.
    pub(super) async fn call(&self, message: &Message, deadline: Instant) -> Result<(), Status> {
        match timeout_at(deadline, self.call_in_time(message, deadline)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    async fn call_in_time(&self, message: &Message, deadline: Instant) -> Result<(), Status> {
        let gone = || Status::unavailable("the server's calls have ended");
        let (answer, answered) = oneshot::channel();
        let item = Item {
            // A clone shares the payload.
            message: message.clone(),
            deadline,
            answer,
        };
        self.queue.send(item).await.map_err(|_| gone())?;
        match answered.await {
            Ok(Answer::Outcome(outcome)) => outcome,
            Ok(Answer::Alone) => {
                let _place = self.caller.places.acquire().await.map_err(|_| gone())?;
                let outcomes = self.caller.call(vec![message.clone()], deadline).await?;
                outcomes
                    .into_iter()
                    .next()
                    .map_or_else(|| Err(gone()), read)
            }
            Err(_) => Err(gone()),
        }
    }
}

/// Makes calls out of what is in the queue, until it is closed.
async fn run(mut items: mpsc::Receiver<Item>, caller: Arc<Caller>, limits: BatchLimits) {
    // As many as there are places, and those that have just ended.
    let mut calls = JoinSet::new();
    let mut held = None;
    loop {
        let first = match held.take() {
            Some(first) => Some(first),
            None => items.recv().await,
        };
        let (Some(first), Ok(place)) = (first, Arc::clone(&caller.places).acquire_owned().await)
        else {
            return;
        };
        while calls.try_join_next().is_some() {}
        let mut batch;
        (batch, held) = gather(first, &mut items, limits).await;
        batch.retain(|item| !item.answer.is_closed());
        if batch.is_empty() {
            continue;
        }
        let caller = Arc::clone(&caller);
        calls.spawn(async move {
            caller.deliver(batch).await;
            drop(place);
        });
    }
}

/// Returns the items of the next call, and one that is too large for it.
async fn gather(
    first: Item,
    items: &mut mpsc::Receiver<Item>,
    limits: BatchLimits,
) -> (Vec<Item>, Option<Item>) {
    let until = Instant::now() + limits.wait;
    let mut bytes = first.message.encoded_len();
    let mut batch = vec![first];
    while batch.len() < limits.messages && bytes < limits.bytes {
        let Ok(Some(item)) = timeout_at(until, items.recv()).await else {
            break;
        };
        bytes += item.message.encoded_len();
        if bytes > limits.bytes {
            return (batch, Some(item));
        }
        batch.push(item);
    }
    (batch, None)
}

struct Caller {
    client: BatchProcessorClient<Channel>,
    places: Arc<Semaphore>,
}

impl Caller {
    /// Makes one call and tells each item its answer.
    async fn deliver(&self, items: Vec<Item>) {
        let last = items.iter().map(|item| item.deadline).max();
        let deadline = last.unwrap_or_else(Instant::now);
        let messages = items.iter().map(|item| item.message.clone()).collect();
        let is_single = items.len() == 1;
        match self.call(messages, deadline).await {
            Ok(outcomes) => {
                for (item, outcome) in items.into_iter().zip(outcomes) {
                    // Whoever waited may have given up.
                    let _ = item.answer.send(Answer::Outcome(read(outcome)));
                }
            }
            Err(status) => {
                let blames_nobody = is_single || class(code(&status)) == Class::Temporary;
                for item in items {
                    let answer = match blames_nobody {
                        true => Answer::Outcome(Err(status.clone())),
                        false => Answer::Alone,
                    };
                    let _ = item.answer.send(answer);
                }
            }
        }
    }

    /// Returns as many outcomes as there are messages.
    async fn call(
        &self,
        messages: Vec<Message>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, Status> {
        let count = messages.len();
        let mut request = Request::new(BatchRequest { messages });
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let mut client = self.client.clone();
        let outcomes = match timeout_at(deadline, client.process_batch(request)).await {
            Ok(answer) => answer.map_err(explain)?.into_inner().outcomes,
            Err(_) => return Err(Status::deadline_exceeded("no answer in time")),
        };
        if outcomes.len() != count {
            let text = format!("{} outcomes for {count} messages", outcomes.len());
            return Err(Status::internal(text));
        }
        Ok(outcomes)
    }
}

fn read(outcome: Outcome) -> Result<(), Status> {
    match Code::from(i32::try_from(outcome.code).unwrap_or(i32::MAX)) {
        Code::Ok => Ok(()),
        code => Err(Status::new(code, outcome.text)),
    }
}

/// A process without the method is set up wrongly; no message is to blame.
fn explain(status: Status) -> Status {
    match code(&status) {
        Code::Unimplemented => Status::unavailable(
            "the service does not implement fleethold.service.v1.BatchProcessor; write a \
             config of type fleetspeak.grpcservice.Config for single messages",
        ),
        _ => status,
    }
}
