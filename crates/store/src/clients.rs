//! Clients: keys, labels, contacts, blacklist and resource usage.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::{Client, ClientContact, ClientResourceUsageRecord};
use fleethold_proto::fleetspeak::{Label, Message};
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::ids::{ClientId, MessageId};

/// What the server must know of a client to talk to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientData {
    /// The client's public key, DER SubjectPublicKeyInfo; may be empty.
    pub key: Bytes,
    /// Labels; a store returns them by (service name, label).
    pub labels: Vec<Label>,
    /// Whether the client must make itself a new key.
    pub blacklisted: bool,
}

/// One contact of a client with a server.
#[derive(Clone, Debug, PartialEq)]
pub struct ContactData {
    /// Who made contact.
    pub client_id: ClientId,
    /// The nonce the server sent in this contact.
    pub nonce_sent: u64,
    /// The nonce the client sent: the one it got in its previous contact, or 0.
    pub nonce_received: u64,
    /// Observed network address; cut to 64 characters.
    pub addr: String,
    /// The client's clock; an invalid one is stored as absent.
    pub client_clock: Option<Timestamp>,
    /// Where the client's stream ends; `None` for a poll. At most 128 bytes.
    pub streaming_to: Option<String>,
    /// The client's labels at contact time; stored by no backend.
    pub labels: Vec<Label>,
}

/// Names a recorded contact; opaque outside the store that made it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContactId(String);

impl ContactId {
    /// Wraps the text of a contact id; a store checks it when it is used.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Makes the id of a contact that a store numbers: lower-case hex without padding.
    pub fn from_number(number: i64) -> Self {
        Self(format!("{number:x}"))
    }

    /// Returns the number of a contact that a store numbers.
    ///
    /// # Errors
    /// `InvalidArgument` unless the text is a number in hex.
    pub fn number(&self, operation: &'static str) -> Result<i64> {
        Some(&self.0)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|text| i64::from_str_radix(text, 16).ok())
            .ok_or_else(|| Error::invalid(operation, "a contact id is a number in hex"))
    }

    /// Returns the text of the contact id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Stores clients and what is known of them.
///
/// Every method is atomic, and durable when it returns success. Texts are
/// compared byte by byte. A dropped future leaves its operation done or not
/// done, never half done.
#[async_trait]
pub trait ClientStore: Send + Sync {
    /// Returns the clients with these ids, all clients if there are no ids;
    /// unknown ids are left out, repeated ones returned once. Ordered by
    /// client id, labels by (service name, label). Specification section 3.3.1.
    async fn list_clients(&self, ids: &[ClientId]) -> Result<Vec<Client>>;

    /// Streams client ids in ascending order; with `last_contact_after` only
    /// those whose last contact is strictly later. Specification section 3.3.2.
    ///
    /// The store is read page by page: a slow reader holds no lock, connection
    /// or transaction, and may call the store. Every client that exists during
    /// the whole stream appears exactly once. The stream ends after an error;
    /// an invalid time is `InvalidArgument` as its first item.
    fn stream_client_ids(
        &self,
        include_blacklisted: bool,
        last_contact_after: Option<Timestamp>,
    ) -> BoxStream<'_, Result<ClientId>>;

    /// Returns key, labels and blacklist flag. Specification section 3.3.3.
    ///
    /// # Errors
    /// `NotFound` for an unknown client.
    async fn get_client_data(&self, id: ClientId) -> Result<ClientData>;

    /// Adds a client whose last contact is now; creates no contact. A label
    /// that appears twice is stored once. Specification section 3.3.4.
    ///
    /// # Errors
    /// `AlreadyExists`, the stored client is unchanged then; `InvalidArgument`
    /// for a label over 128 characters.
    async fn add_client(&self, id: ClientId, data: &ClientData) -> Result<()>;

    /// Adds a label; one that is there already is no error. Specification
    /// section 3.3.5.
    ///
    /// # Errors
    /// `NotFound` for an unknown client; `InvalidArgument` for a service name
    /// or label over 128 characters.
    async fn add_client_label(&self, id: ClientId, label: &Label) -> Result<()>;

    /// Removes a label; a missing label or client is no error.
    async fn remove_client_label(&self, id: ClientId, label: &Label) -> Result<()>;

    /// Sets the blacklist flag; nothing un-sets it. Pending messages, labels
    /// and key stay. Specification section 3.3.6.
    ///
    /// # Errors
    /// `NotFound` for an unknown client.
    async fn blacklist_client(&self, id: ClientId) -> Result<()>;

    /// Records a contact now and overwrites the client's last contact time,
    /// address, streaming target and clock; what is absent clears the previous
    /// value. Specification section 3.3.7.
    ///
    /// # Errors
    /// `NotFound` for an unknown client; `InvalidArgument` for a streaming
    /// target over 128 bytes.
    async fn record_client_contact(&self, contact: &ContactData) -> Result<ContactId>;

    /// Does [`record_client_contact`](Self::record_client_contact) and
    /// [`store_messages`](crate::MessageStore::store_messages) with that
    /// contact in one transaction. Not part of upstream's interface.
    ///
    /// # Errors
    /// Those of both; nothing is stored then.
    async fn store_contact(&self, contact: &ContactData, messages: &[Message])
    -> Result<ContactId>;

    /// Does [`add_client`](Self::add_client) with the contact's client and
    /// [`record_client_contact`](Self::record_client_contact) in one
    /// transaction. Not part of upstream's interface.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for a label over 128 characters or a
    /// streaming target over 128 bytes. Nothing is stored then.
    async fn enrol(&self, data: &ClientData, contact: &ContactData) -> Result<ContactId>;

    /// Returns the contacts of a client by (time, order of recording); none for
    /// an unknown client. Specification section 3.3.8.
    async fn list_client_contacts(&self, id: ClientId) -> Result<Vec<ClientContact>>;

    /// Streams what [`list_client_contacts`](Self::list_client_contacts)
    /// returns, page by page, with the promises of
    /// [`stream_client_ids`](Self::stream_client_ids).
    fn stream_client_contacts(&self, id: ClientId) -> BoxStream<'_, Result<ClientContact>>;

    /// Records that messages were sent during a contact; a message linked
    /// already, repeated or unknown is no error. Specification section 3.3.9.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed and `NotFound` for an unknown contact,
    /// if there are ids; without ids the contact is not looked at.
    async fn link_messages_to_contact(&self, contact: &ContactId, ids: &[MessageId]) -> Result<()>;

    /// Appends a resource usage record received now. Absent usage counts as
    /// zero; numbers out of range saturate. Specification section 3.3.10.
    ///
    /// # Errors
    /// `InvalidArgument` if a time is absent or invalid; `NotFound` for an
    /// unknown client.
    async fn record_resource_usage_data(
        &self,
        id: ClientId,
        usage: &ResourceUsageData,
    ) -> Result<()>;

    /// Returns the records received at or after `start` and before `end`, by
    /// that time; none for an unknown client. Specification section 3.3.11.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid time or a `start` after `end`.
    async fn fetch_resource_usage_records(
        &self,
        id: ClientId,
        start: &Timestamp,
        end: &Timestamp,
    ) -> Result<Vec<ClientResourceUsageRecord>>;
}

/// Returns whether two label lists have the same length and contain the same
/// labels, in any order (specification section 5.4).
pub fn labels_equal(a: &[Label], b: &[Label]) -> bool {
    a.len() == b.len()
        && a.iter().all(|label| b.contains(label))
        && b.iter().all(|label| a.contains(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_lists_are_equal_as_sets_of_the_same_length() {
        let list = |names: &str| -> Vec<Label> {
            names
                .chars()
                .map(|name| Label {
                    service_name: "client".into(),
                    label: name.into(),
                })
                .collect()
        };
        assert!(labels_equal(&list("ab"), &list("ba")));
        assert!(labels_equal(&list("aab"), &list("abb")));
        assert!(!labels_equal(&list("aa"), &list("a")));
        assert!(!labels_equal(&list("ab"), &list("ac")));
    }

    #[test]
    fn contact_number_is_hex_without_padding() {
        assert_eq!(ContactId::from_number(31).as_str(), "1f");
        assert_eq!(ContactId::new("1f").number("x").unwrap(), 31);
        for wrong in ["zz", "", "+1", "-1", "0x1", "10000000000000000"] {
            let error = ContactId::new(wrong).number("x").unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidArgument, "{wrong}");
        }
    }
}
