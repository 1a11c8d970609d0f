//! Factory `GRPC`: gives messages to a process that implements
//! `fleetspeak.grpcservice.Processor` (protocol specification section 4.3).
//!
//! One connection serves all messages. It is made when it is first needed and
//! made again when it broke, so the process may start later and be restarted.

pub(crate) mod batch;
mod connect;
mod target;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_proto::fleethold::service::v1::BatchConfig;
use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::grpcservice::Config;
use fleethold_proto::fleetspeak::grpcservice::processor_client::ProcessorClient;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use self::batch::{BatchLimits, Batcher};
use self::connect::Connector;
use self::target::Target;
use super::{Service, ServiceConfigError, ServiceError};

/// Reads a target for `crate::fuzzing`; returns its text form.
#[cfg(feature = "fuzzing")]
pub fn read_target(text: &str) -> Result<String, String> {
    let target = Target::parse(text)?;
    target.origin(true)?;
    Ok(target.to_string())
}

/// The pauses between calls double from the first to the longest. Upstream
/// waits 1, 2, 4 … s and so delays delivery after a short restart for long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// An unclear error counts as permanent after tries for this long at least:
/// upstream tries for 30 s, of which some pass before the service is called.
const LONG_ENOUGH: Duration = Duration::from_secs(25);

/// Pings find a process that vanished without a word. They are sent only while
/// a call is open, and rarely: stock gRPC servers close a connection after the
/// fourth ping during which they had nothing to say.
const PING_INTERVAL: Duration = Duration::from_secs(25);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A service in another process.
pub(crate) struct GrpcService {
    name: String,
    target: Target,
    calls: Calls,
    /// Whether the last call got an answer; only its changes are logged.
    answers: AtomicBool,
}

/// How messages get to the process.
enum Calls {
    One(ProcessorClient<Channel>),
    Many(Batcher),
}

impl GrpcService {
    /// Prepares the connection of the service called `name`, without making it;
    /// call this inside the runtime.
    pub(crate) fn from_config(name: &str, config: &Config) -> Result<Self, ServiceConfigError> {
        let (target, channel) = connection(name, config)?;
        Ok(Self::new(
            name,
            target,
            Calls::One(ProcessorClient::new(channel)),
        ))
    }

    /// As [`from_config`](Self::from_config), for calls with many messages; also
    /// returns how many messages all its calls carry.
    pub(crate) fn from_batch_config(
        name: &str,
        config: &BatchConfig,
    ) -> Result<(Self, u32), ServiceConfigError> {
        let problem = |problem| ServiceConfigError {
            service: name.to_owned(),
            problem,
        };
        let limits = BatchLimits::read(config)
            .map_err(|text| problem(format!("its config cannot be used: {text}")))?;
        let missing = || problem("its config needs a `connection`".to_owned());
        let (target, channel) = connection(name, config.connection.as_ref().ok_or_else(missing)?)?;
        let batcher = Batcher::start(channel, limits);
        let most = u32::try_from(limits.messages * limits.calls).unwrap_or(u32::MAX);
        Ok((Self::new(name, target, Calls::Many(batcher)), most))
    }

    fn new(name: &str, target: Target, calls: Calls) -> Self {
        Self {
            name: name.to_owned(),
            target,
            calls,
            answers: AtomicBool::new(true),
        }
    }

    async fn call(&self, message: &Message, deadline: Instant) -> Result<(), Status> {
        let client = match &self.calls {
            Calls::One(client) => client,
            Calls::Many(batcher) => return batcher.call(message, deadline).await,
        };
        // A clone shares the payload.
        let mut request = Request::new(message.clone());
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        // Also ends the wait for a connection, about which tonic's own limit does not know.
        let mut client = client.clone();
        match timeout_at(deadline, client.process(request)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    fn note(&self, answers: bool, text: &str) {
        if self.answers.swap(answers, Ordering::Relaxed) == answers {
            return;
        }
        let (service, target) = (&self.name, &self.target);
        if answers {
            tracing::info!(service, %target, "service answers again");
        } else {
            tracing::warn!(service, %target, error = text, "service does not answer");
        }
    }
}

#[async_trait]
impl Service for GrpcService {
    async fn process(&self, message: &Message, deadline: Instant) -> Result<(), ServiceError> {
        let budget = deadline.saturating_duration_since(Instant::now());
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(status) = self.call(message, deadline).await else {
                self.note(true, "");
                return Ok(());
            };
            let code = code(&status);
            let text = describe(&self.target, code, &status);
            self.note(
                !matches!(code, Code::Unavailable | Code::DeadlineExceeded),
                &text,
            );
            let class = class(code);
            let next = Instant::now() + pause;
            if class != Class::Permanent && next < deadline {
                sleep_until(next).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
                continue;
            }
            return Err(if is_final(class, budget) {
                ServiceError::Permanent(text)
            } else {
                ServiceError::Temporary(text)
            });
        }
    }
}

/// Prepares a connection, without making it.
fn connection(name: &str, config: &Config) -> Result<(Target, Channel), ServiceConfigError> {
    let problem = |problem| ServiceConfigError {
        service: name.to_owned(),
        problem,
    };
    let target = Target::parse(&config.target)
        .map_err(|text| problem(format!("`target` of its config: {text}")))?;
    let connector = match (config.insecure, config.cert_file.as_str()) {
        (true, _) => Connector::plain(target.clone()),
        (false, "") => {
            return Err(problem(
                "its config needs `insecure: true` for an unencrypted connection, or \
                     `cert_file` with the certificates to trust"
                    .to_owned(),
            ));
        }
        (false, path) => Connector::tls(target.clone(), path.as_ref())
            .map_err(|text| problem(format!("`cert_file` of its config: {text}")))?,
    };
    let origin = target
        .origin(connector.is_encrypted())
        .map_err(|text| problem(format!("`target` of its config: {text}")))?;
    // The connector knows where to go; this address is never looked up.
    let channel = Endpoint::from_static("http://service")
        .origin(origin)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .connect_with_connector_lazy(connector);
    Ok((target, channel))
}

/// What a gRPC code says about another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// The same call cannot succeed.
    Permanent,
    /// The message is not to blame.
    Temporary,
    /// Either: an exception in a Python service, for example, is `UNKNOWN`.
    Unclear,
}

fn class(code: Code) -> Class {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::AlreadyExists
        | Code::DataLoss => Class::Permanent,
        Code::DeadlineExceeded
        | Code::Unavailable
        | Code::Aborted
        | Code::Cancelled
        | Code::Unauthenticated
        | Code::PermissionDenied => Class::Temporary,
        Code::Unknown | Code::ResourceExhausted | Code::Internal | Code::Ok => Class::Unclear,
    }
}

/// Returns whether a message has failed for good after tries during `budget`
/// whose last error was of this class.
fn is_final(class: Class, budget: Duration) -> bool {
    match class {
        Class::Permanent => true,
        Class::Temporary => false,
        Class::Unclear => budget >= LONG_ENOUGH,
    }
}

/// Returns the service's code; a broken connection is `UNAVAILABLE`, where
/// tonic often says `UNKNOWN` or `INTERNAL`. Only errors of this side have a source.
fn code(status: &Status) -> Code {
    match status.source() {
        Some(_) => Code::Unavailable,
        None => status.code(),
    }
}

fn describe(target: &Target, code: Code, status: &Status) -> String {
    match status.source() {
        Some(source) => format!("{target}: {code:?}: {}", crate::chain(source)),
        None => format!("{target}: {code:?}: {}", status.message()),
    }
}
