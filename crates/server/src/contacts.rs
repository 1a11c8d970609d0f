//! What happens in a contact of an agent, whatever carries it: checks,
//! enrolment, its messages, and messages for it (protocol specification section 3).

pub(crate) mod checks;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fleethold_proto::fleetspeak::{
    Address, ContactData as WireContact, Label, Message, MessageResult, WrappedContactData,
};
use fleethold_store::clock::timestamp;
use fleethold_store::limits::{check_name, fills_claim};
use fleethold_store::{
    ClientData, ClientId, ContactData, ContactId, ErrorKind, MessageId, ServiceLimits,
};
use tokio::time::Instant;

use crate::cache::CachedClient;
use crate::certificate;
use crate::contacts::checks::{check_key, give_up_oversized, is_die, stamp};
use crate::engine::Engine;
use crate::limits::Refused;
use crate::notifications::News;
use crate::services::Try;
use crate::services::system::{CLIENT, NAME as SYSTEM, REKEY_REQUEST};
use crate::wire::{self, MOST_ELEMENTS, MOST_MESSAGES};

/// How long a stream's record is kept when the store has a passing trouble: a
/// failed record makes the agent reconnect, a failed contact makes it wait minutes.
const STORE_RETRIES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1_500),
    Duration::from_secs(3),
];

/// How many of the latest messages handed out in a contact can be given back: stock
/// agents accept a hundred before their services take some.
const MOST_GIVEN_BACK: usize = 200;

/// Claims last 15 minutes; what was claimed longer ago may be somebody else's.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(14 * 60);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The id that follows from the key.
    pub(crate) client: ClientId,
    /// The public key, DER SubjectPublicKeyInfo.
    pub(crate) key: Bytes,
    /// The observed address.
    pub(crate) addr: SocketAddr,
}

/// Why a contact ends without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContactError {
    #[error("not authorized")]
    NotAuthorized,
    /// The agent, or all of them, ask for too much; this one should wait.
    #[error("{reason}")]
    Busy {
        refused: Refused,
        reason: &'static str,
        retry_after: Duration,
    },
    /// The store fails, and may work again in a moment.
    #[error("{0}")]
    StoreFails(String),
    #[error("{0}")]
    Failed(String),
}

/// How a contact is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContactKind {
    Poll,
    Stream,
}

/// What a contact needs of the server.
pub(crate) struct Contacts {
    pub(crate) engine: Arc<Engine>,
    /// Agents without this label are refused.
    pub(crate) required_label: Option<String>,
    /// What other servers are told about where this server's streams end.
    pub(crate) streaming_to: String,
}

/// A poll or a stream whose first exchange has succeeded.
pub(crate) struct Contact {
    contacts: Arc<Contacts>,
    client: ClientId,
    id: ContactId,
    nonce: u64,
    /// `None` until the agent has sent tokens: no limits.
    tokens: Mutex<Option<ServiceLimits>>,
    /// Whether the client was in the cache when the contact began.
    cache_hit: bool,
    rekey_requested: AtomicBool,
    /// The latest messages that were claimed for this contact.
    claimed: Mutex<VecDeque<(SystemTime, MessageId)>>,
}

/// Messages for an agent.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    pub(crate) messages: Vec<Message>,
    /// There may be more: take again at once.
    pub(crate) more: bool,
    /// The agent was told to make itself a new key: it should reconnect soon.
    pub(crate) wind_down: bool,
}

/// What a record of a stream brought.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// How many messages it had.
    pub(crate) messages: usize,
    /// A service accepts messages again: take messages now.
    pub(crate) deliver: bool,
}

impl Contacts {
    /// Returns whether an agent with these labels may download files.
    pub(crate) fn file_allowed(&self, labels: &[String]) -> bool {
        self.required_label
            .as_ref()
            .is_none_or(|required| labels.contains(required))
    }

    /// Carries out a poll, or record 0 of a stream: checks the agent, enrols a
    /// new one, processes its messages, and stores all of it at once.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        peer: Peer,
        record: WrappedContactData,
        kind: ContactKind,
    ) -> Result<Contact, ContactError> {
        let wire = self.open(&record)?;
        let client = peer.client;
        let cache_hit = self.engine.cache.holds(client);
        let known = self.known(&peer).await?;
        if let Some(known) = &known {
            check_key(known, &peer)?;
        }
        self.admit_messages(client, wire.messages.len())?;
        if known.is_none() {
            self.admit_enrolment()?;
        }
        let nonce = self.engine.random.next_u64().max(1);
        let contact = ContactData {
            client_id: client,
            nonce_sent: nonce,
            nonce_received: wire.sequencing_nonce,
            addr: peer.addr.to_string(),
            client_clock: wire.client_clock,
            streaming_to: (kind == ContactKind::Stream).then(|| self.streaming_to.clone()),
            labels: Vec::new(),
        };
        let mut enrolled = None;
        if known.is_none() {
            // A new agent mostly has nothing to say, and is stored with its contact then.
            let first = wire.messages.is_empty().then_some(&contact);
            enrolled = self.enrol(&peer, &record.client_labels, first).await?;
        }
        let id = match enrolled {
            Some(id) => id,
            None => self.store(&contact, wire.messages).await?,
        };
        let tokens = (!wire.allowed_messages.is_empty()).then(|| {
            wire.allowed_messages
                .into_iter()
                .take(MOST_ELEMENTS)
                .collect()
        });
        Ok(Contact {
            contacts: Arc::clone(self),
            client,
            id,
            nonce,
            tokens: Mutex::new(tokens),
            cache_hit,
            rekey_requested: AtomicBool::new(false),
            claimed: Mutex::default(),
        })
    }

    /// Processes the messages of a contact of a known client and stores them with it.
    async fn store(
        &self,
        contact: &ContactData,
        messages: Vec<Message>,
    ) -> Result<ContactId, ContactError> {
        let client = contact.client_id;
        let messages = self.process(client, messages).await;
        match self.engine.store.store_contact(contact, &messages).await {
            Ok(id) => {
                self.count_saved(client, &messages).await;
                Ok(id)
            }
            Err(error) => {
                if error.is_not_found() {
                    self.engine.cache.forget(client);
                }
                Err(failed(&error))
            }
        }
    }

    /// Checks a record and takes the contact data out of it.
    fn open(&self, record: &WrappedContactData) -> Result<WireContact, ContactError> {
        if let Some(required) = &self.required_label
            && !record.client_labels.contains(required)
        {
            return Err(ContactError::NotAuthorized);
        }
        // Nobody uses extra signatures, but what is there must be readable.
        for signed_by in record
            .signatures
            .iter()
            .flat_map(|signature| &signature.certificate)
        {
            certificate::public_key(signed_by).ok_or_else(|| {
                ContactError::Failed("a signature's certificate is unreadable".to_owned())
            })?;
        }
        let wire = wire::decode_contact(record.contact_data.clone()).map_err(|error| {
            ContactError::Failed(format!("contact data is unreadable: {error}"))
        })?;
        Ok(wire)
    }

    /// Counts messages of an agent that are stored now.
    async fn count_saved(&self, client: ClientId, messages: &[Message]) {
        if !messages.is_empty()
            && let Ok(Some(known)) = self.engine.cache.load(client).await
        {
            self.engine.metrics.saved(messages, known.metric_labels());
        }
    }

    async fn known(&self, peer: &Peer) -> Result<Option<Arc<CachedClient>>, ContactError> {
        self.engine
            .cache
            .load(peer.client)
            .await
            .map_err(|error| failed(&error))
    }

    /// Refuses a contact of an agent that has sent too many messages lately.
    fn admit_messages(&self, client: ClientId, count: usize) -> Result<(), ContactError> {
        let gate = &self.engine.gate;
        gate.agents
            .messages(client, count, Instant::now())
            .map_err(|retry_after| ContactError::Busy {
                refused: Refused::AgentMessages,
                reason: "too many messages, send them later",
                retry_after,
            })
    }

    fn admit_enrolment(&self) -> Result<(), ContactError> {
        let admitted = self.engine.gate.enrolments.take(Instant::now());
        admitted.map_err(|retry_after| ContactError::Busy {
            refused: Refused::Enrolments,
            reason: "too many new clients, try again later",
            retry_after,
        })
    }

    /// Adds a client with its first contact if there is one here; returns that
    /// contact unless the client was there already.
    async fn enrol(
        &self,
        peer: &Peer,
        labels: &[String],
        first: Option<&ContactData>,
    ) -> Result<Option<ContactId>, ContactError> {
        let data = ClientData {
            key: peer.key.clone(),
            labels: labels
                .iter()
                .filter(|label| check_name("enrol", "label", label).is_ok())
                .take(MOST_MESSAGES)
                .map(|label| Label {
                    service_name: CLIENT.to_owned(),
                    label: label.clone(),
                })
                .collect(),
            blacklisted: false,
        };
        match self.engine.cache.add(peer.client, data, first).await {
            Ok(stored) => {
                tracing::info!(client = %peer.client, addr = %peer.addr, "enrolled a client");
                Ok(stored)
            }
            // A second first contact of the same agent was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                match self.known(peer).await? {
                    Some(known) => check_key(&known, peer).map(|()| None),
                    None => Err(failed(&error)),
                }
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Drops what an agent must not send and gives the rest to the services.
    async fn process(&self, client: ClientId, messages: Vec<Message>) -> Vec<Message> {
        let now = timestamp(self.engine.clock.now());
        let mut accepted: BTreeMap<Bytes, Message> = BTreeMap::new();
        for mut message in messages {
            if let Err(reason) = stamp(client, &mut message) {
                tracing::debug!(%client, reason, "dropped a message of an agent");
                continue;
            }
            message.creation_time = Some(now);
            // A message sent twice in one contact is processed once.
            accepted
                .entry(message.message_id.clone())
                .or_insert(message);
        }
        let mut messages = self
            .engine
            .services
            .process(accepted.into_values().collect(), Try::First)
            .await;
        messages
            .iter_mut()
            .for_each(|message| give_up_oversized(message, now));
        messages
    }
}

impl Contact {
    pub(crate) fn client(&self) -> ClientId {
        self.client
    }

    /// Whether the client was in the cache when the contact began.
    pub(crate) fn cache_hit(&self) -> bool {
        self.cache_hit
    }

    /// The nonce to send to the agent.
    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Claims messages for the agent: at most 100, and its broadcasts.
    pub(crate) async fn take_messages(&self) -> Result<Delivery, ContactError> {
        let engine = &*self.contacts.engine;
        let known = engine
            .cache
            .load(self.client)
            .await
            .map_err(|error| failed(&error))?;
        let Some(known) = known else {
            return Err(ContactError::Failed("the client is gone".into()));
        };
        if known.data.blacklisted {
            return self.request_rekey().await;
        }
        let tokens = self.tokens().clone();
        let most = u64::try_from(MOST_MESSAGES).expect("fits");
        let mut messages = engine
            .store
            .client_messages_for_processing(self.client, most, tokens.as_ref())
            .await
            .map_err(|error| failed(&error))?;
        self.note_claimed(&messages);
        let more = messages.len() == MOST_MESSAGES || fills_claim(&messages);
        let more = self.use_tokens(&messages, tokens) || more;
        let (broadcasts, more_broadcasts) =
            engine.broadcasts.messages_for(self.client, &known).await;
        let more = more || more_broadcasts;
        self.note_claimed(&broadcasts);
        messages.extend(broadcasts);
        engine.metrics.sent(&messages, known.metric_labels());
        self.record_hand_out(&messages).await;
        Ok(Delivery {
            messages,
            more,
            wind_down: false,
        })
    }

    /// Accepts a later record of a stream; its messages are stored on return.
    pub(crate) async fn accept_record(
        &self,
        record: WrappedContactData,
    ) -> Result<Accepted, ContactError> {
        let engine = &*self.contacts.engine;
        let wire = self.contacts.open(&record)?;
        let deliver = self.add_tokens(wire.allowed_messages);
        let accepted = Accepted {
            messages: wire.messages.len(),
            deliver,
        };
        if wire.messages.is_empty() {
            return Ok(accepted);
        }
        let messages = self.contacts.process(self.client, wire.messages).await;
        let mut retries = STORE_RETRIES.iter();
        loop {
            match engine.store.store_messages(&messages, Some(&self.id)).await {
                Ok(()) => {
                    self.contacts.count_saved(self.client, &messages).await;
                    return Ok(accepted);
                }
                Err(error) => match retries.next() {
                    Some(wait) if error.is_retryable() => tokio::time::sleep(*wait).await,
                    _ => return Err(failed(&error)),
                },
            }
        }
    }

    /// Hands out the one message a blacklisted client gets, once a contact.
    ///
    /// Its id follows from the client's, so that however often the client
    /// comes, the store keeps one such message.
    async fn request_rekey(&self) -> Result<Delivery, ContactError> {
        if self.rekey_requested.swap(true, Ordering::Relaxed) {
            return Ok(Delivery::default());
        }
        let engine = &*self.contacts.engine;
        let id = MessageId::for_source(Some(self.client), SYSTEM, REKEY_REQUEST.as_bytes());
        let message = Message {
            message_id: id.to_bytes(),
            source: Some(Address {
                service_name: SYSTEM.to_owned(),
                ..Address::default()
            }),
            destination: Some(Address {
                client_id: self.client.to_bytes(),
                service_name: SYSTEM.to_owned(),
            }),
            message_type: REKEY_REQUEST.to_owned(),
            creation_time: Some(timestamp(engine.clock.now())),
            ..Message::default()
        };
        let messages = vec![message];
        engine
            .store
            .store_messages(&messages, Some(&self.id))
            .await
            .map_err(|error| failed(&error))?;
        Ok(Delivery {
            messages,
            more: false,
            wind_down: true,
        })
    }

    /// Notes which messages went out in this contact. They are claimed already:
    /// a failure here must not keep them from the agent.
    async fn record_hand_out(&self, messages: &[Message]) {
        let engine = &*self.contacts.engine;
        let ids = |wanted: fn(&Message) -> bool| -> Vec<MessageId> {
            messages
                .iter()
                .filter(|message| wanted(message))
                .filter_map(|message| MessageId::try_from(&message.message_id[..]).ok())
                .collect()
        };
        let sent = ids(|_| true);
        if sent.is_empty() {
            return;
        }
        if let Err(error) = engine.store.link_messages_to_contact(&self.id, &sent).await {
            tracing::warn!(client = %self.client, error = %crate::chain(&error), "cannot link messages to their contact");
        }
        let dying = ids(is_die);
        if dying.is_empty() {
            return;
        }
        // The agent ends without acknowledging.
        let success = MessageResult {
            processed_time: Some(timestamp(engine.clock.now())),
            ..MessageResult::default()
        };
        let results: Vec<_> = dying.into_iter().map(|id| (id, success.clone())).collect();
        if let Err(error) = engine.store.set_message_results(&results).await {
            tracing::warn!(client = %self.client, error = %crate::chain(&error), "cannot finish a message that ends its agent");
        }
    }

    fn note_claimed(&self, messages: &[Message]) {
        let now = self.contacts.engine.clock.now();
        let mut claimed = self.claimed();
        claimed.extend(messages.iter().filter_map(|message| {
            let id = MessageId::try_from(&message.message_id[..]).ok();
            id.filter(|_| !is_die(message)).map(|id| (now, id))
        }));
        let older = claimed.len().saturating_sub(MOST_GIVEN_BACK);
        claimed.drain(..older);
    }

    /// Gives back what was claimed for this contact and is not acknowledged, for
    /// the agent's next contact: nobody knows what of it has arrived.
    pub(crate) async fn give_back(&self) {
        let engine = &*self.contacts.engine;
        let now = engine.clock.now();
        let age = |time| now.duration_since(time).unwrap_or_default();
        let claimed: Vec<_> = std::mem::take(&mut *self.claimed())
            .into_iter()
            .filter(|(time, _)| age(*time) < GIVE_BACK_WITHIN)
            .map(|(_, id)| id)
            .collect();
        if claimed.is_empty() {
            return;
        }
        match engine.store.release_messages(self.client, &claimed).await {
            // The agent may have another stream already, here or elsewhere.
            Ok(()) => engine.wake(self.client, News::Messages),
            Err(error) => {
                tracing::warn!(client = %self.client, error = %crate::chain(&error), "cannot give messages back; they wait for the end of their claim");
            }
        }
    }

    fn claimed(&self) -> std::sync::MutexGuard<'_, VecDeque<(SystemTime, MessageId)>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Option<ServiceLimits>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes tokens for claimed messages; returns whether a service that got
    /// all it could take when the claim began can take more by now.
    fn use_tokens(&self, messages: &[Message], mut at_claim: Option<ServiceLimits>) -> bool {
        let mut tokens = self.tokens();
        let (Some(tokens), Some(at_claim)) = (tokens.as_mut(), at_claim.as_mut()) else {
            return false;
        };
        for message in messages.iter().filter(|message| !is_die(message)) {
            let service = message
                .destination
                .as_ref()
                .map_or("", |to| to.service_name.as_str());
            for limits in [&mut *tokens, &mut *at_claim] {
                if let Some(left) = limits.get_mut(service) {
                    *left = left.saturating_sub(1);
                }
            }
        }
        at_claim
            .iter()
            .any(|(service, left)| *left == 0 && tokens.get(service).is_some_and(|left| *left > 0))
    }

    /// Adds tokens; returns whether a service accepts messages that did not before.
    fn add_tokens(&self, added: BTreeMap<String, u64>) -> bool {
        if added.is_empty() {
            return false;
        }
        let mut tokens = self.tokens();
        let tokens = tokens.get_or_insert_default();
        let mut opened = false;
        for (service, count) in added {
            if tokens.len() >= MOST_ELEMENTS && !tokens.contains_key(&service) {
                continue;
            }
            let left = tokens.entry(service).or_default();
            opened |= *left == 0 && count > 0;
            *left = left.saturating_add(count);
        }
        opened
    }
}

fn failed(error: &fleethold_store::Error) -> ContactError {
    let reason = crate::chain(error);
    match error.kind() {
        ErrorKind::Transient | ErrorKind::Closed => ContactError::StoreFails(reason),
        _ => ContactError::Failed(reason),
    }
}

#[cfg(test)]
mod tests;
