//! The log of changes: who changed what, for how many clients, and whether it
//! worked. It has a target of its own, `audit`, and never holds payloads.

use std::fmt::Write as _;
use std::sync::Arc;

use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::server::CreateBroadcastRequest;
use fleethold_store::BROADCAST_UNLIMITED;
use fleethold_store::limits::cut_chars;
use tonic::{Request, Status};

use super::access::Caller;

/// The longest description of a change, in characters.
const MOST_CHARS: usize = 300;

/// A call that changes something.
pub(super) struct Call {
    pub(super) method: &'static str,
    who: Arc<str>,
    /// How many clients are concerned at most; `None` is all of them.
    clients: Option<u64>,
    what: String,
}

impl Call {
    pub(super) fn new<T>(method: &'static str, request: &Request<T>) -> Self {
        let caller = request.extensions().get::<Caller>().cloned();
        Self {
            method,
            who: caller.unwrap_or_else(Caller::anybody).name,
            clients: Some(0),
            what: String::new(),
        }
    }

    pub(super) fn to(mut self, clients: usize) -> Self {
        self.clients = u64::try_from(clients).ok();
        self
    }

    pub(super) fn what(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }

    pub(super) fn insert_message(request: &Request<Message>) -> Self {
        let message = request.get_ref();
        let destination = message.destination.as_ref();
        let client = destination.map_or(&[][..], |address| &address.client_id);
        let service = destination.map_or("", |address| &address.service_name);
        Self::new("InsertMessage", request)
            .to(usize::from(!client.is_empty()))
            .what(format!(
                "message {} type {} to {service} of {}",
                hex(&message.message_id),
                message.message_type,
                hex(client)
            ))
    }

    pub(super) fn create_broadcast(request: &Request<CreateBroadcastRequest>) -> Self {
        let limit = request.get_ref().limit;
        let broadcast = request.get_ref().broadcast.as_ref();
        let what = broadcast.map_or_else(String::new, |broadcast| {
            format!(
                "broadcast {} type {}",
                hex(&broadcast.broadcast_id),
                broadcast.message_type
            )
        });
        Self {
            clients: (limit < BROADCAST_UNLIMITED).then_some(limit),
            what,
            ..Self::new("CreateBroadcast", request)
        }
    }

    /// Writes the line.
    pub(super) fn log(&self, result: &Result<(), Status>) {
        let result = match result {
            Ok(()) => "Ok".to_owned(),
            Err(status) => format!("{:?}", status.code()),
        };
        let clients = match self.clients {
            Some(count) => count.to_string(),
            None => "all".to_owned(),
        };
        // What callers write must not look like another line.
        let what = self.what.escape_debug().to_string();
        let what = cut_chars(&what, MOST_CHARS);
        tracing::info!(target: "audit", who = &*self.who, method = self.method, clients, what, result);
    }
}

/// Writes an id; a wrong one may have any length.
pub(super) fn hex(id: impl AsRef<[u8]>) -> String {
    let mut text = String::new();
    for byte in id.as_ref().iter().take(32) {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}
