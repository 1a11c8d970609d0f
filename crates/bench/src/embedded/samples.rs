//! The messages that are stored: fields of the lengths that the requirements
//! name, so that figures can be compared with those of other stores.

use bytes::Bytes;
use fleethold_proto::fleetspeak::{Address, Message, MessageResult};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::{ClientId, MessageId, Random};

/// The client that has contacts, and whose messages are claimed.
pub(crate) const CLIENT: ClientId = ClientId::new([1; 8]);

const SOURCE_SERVICE: &str = "service-0001";
const DESTINATION_SERVICE: &str = "service-0002";
const MESSAGE_TYPE: &str = "message-type-016";
const TYPE_URL: &str = "type.googleapis.com/example.package.AMessage";

/// What state and direction a message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// From a client, processed; the payload is not stored.
    Processed,
    /// From a client for the server, not yet processed.
    ForServer,
    /// From the server, for one of 65,536 clients.
    ForClients,
    /// From the server, for [`CLIENT`].
    ForOneClient,
    /// The same with a result.
    FinishedByClient,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Processed => "processed",
            Self::ForServer => "pending",
            Self::ForClients => "pending for many clients",
            Self::ForOneClient => "pending for one client",
            Self::FinishedByClient => "finished by one client",
        }
    }

    pub(crate) fn comes_with_contact(self) -> bool {
        matches!(self, Self::Processed | Self::ForServer)
    }

    /// How many bytes a table stores for such a message besides its id.
    pub(crate) fn row_bytes(self, payload_bytes: usize) -> usize {
        const CLIENT_ID: usize = 8;
        const SOURCE_MESSAGE_ID: usize = 16;
        const TIME: usize = 12;
        let all = CLIENT_ID
            + SOURCE_MESSAGE_ID
            + SOURCE_SERVICE.len()
            + DESTINATION_SERVICE.len()
            + MESSAGE_TYPE.len()
            + TIME;
        match self {
            Self::Processed | Self::FinishedByClient => all + TIME,
            _ => all + TIME + TYPE_URL.len() + payload_bytes,
        }
    }
}

/// Makes messages of one kind, whose payloads are one buffer.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    kind: Kind,
    payload: Bytes,
}

impl Samples {
    pub(crate) fn new(kind: Kind, payload_bytes: usize) -> Self {
        Self {
            kind,
            payload: vec![9; payload_bytes].into(),
        }
    }

    pub(crate) fn list(&self, random: &Random, count: u32) -> Vec<Message> {
        (0..count).map(|_| self.message(random)).collect()
    }

    fn message(&self, random: &Random) -> Message {
        let (from, to) = match self.kind {
            Kind::Processed | Kind::ForServer => (Some(CLIENT), None),
            Kind::ForOneClient | Kind::FinishedByClient => (None, Some(CLIENT)),
            Kind::ForClients => {
                let mut client = [0; 8];
                random.fill(&mut client[6..]);
                (None, Some(ClientId::new(client)))
            }
        };
        let is_done = matches!(self.kind, Kind::Processed | Kind::FinishedByClient);
        Message {
            result: is_done.then(success),
            ..message(random, from, to, self.payload.clone())
        }
    }
}

/// Makes a pending message from `from` for `to`; `None` is the server.
pub(crate) fn message(
    random: &Random,
    from: Option<ClientId>,
    to: Option<ClientId>,
    payload: Bytes,
) -> Message {
    let address = |client: Option<ClientId>, service: &str| Address {
        client_id: client.map(ClientId::to_bytes).unwrap_or_default(),
        service_name: service.into(),
    };
    let mut source_message_id = vec![0; 16];
    random.fill(&mut source_message_id);
    Message {
        message_id: MessageId::random(random).to_bytes(),
        source: Some(address(from, SOURCE_SERVICE)),
        source_message_id: source_message_id.into(),
        destination: Some(address(to, DESTINATION_SERVICE)),
        message_type: MESSAGE_TYPE.into(),
        creation_time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 123_456_789,
        }),
        data: Some(Any {
            type_url: TYPE_URL.into(),
            value: payload,
        }),
        ..Message::default()
    }
}

/// A result without failure.
pub(crate) fn success() -> MessageResult {
    MessageResult {
        processed_time: Some(Timestamp {
            seconds: 1_700_000_001,
            nanos: 123_456_789,
        }),
        ..MessageResult::default()
    }
}
