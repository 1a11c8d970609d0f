//! What agents send: contacts, their messages, their certificates.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use fleethold_proto::fleetspeak::{ContactData, Message, WrappedContactData};
use fleethold_server::fuzzing::{
    MOST_ELEMENTS, MOST_MESSAGES, check_certificate, decode_contact, decode_record, identity,
    read_report, stamp,
};
use fleethold_store::clock::timestamp;
use fleethold_store::record::MessageRecord;
use fleethold_store::{ClientId, MessageId};
use prost::Message as _;

use crate::memory::bounded;
use crate::{MOST_INPUT_BYTES, repeated, split_mode};

/// A hundred messages and a thousand elements of each list, all but empty.
const CONTACT_CONSTANT_BYTES: usize = 512 * 1024;

/// A thousand labels and services, all empty.
const REPORT_CONSTANT_BYTES: usize = 192 * 1024;

/// A certificate of any size: only the key is copied.
const CERTIFICATE_CONSTANT_BYTES: usize = 4 * 1024;

/// `ContactData`: byte 0 says how often the others are repeated.
pub fn contact_data(input: &[u8]) {
    if let Some((mode, rest)) = split_mode(input) {
        read_contact(&repeated(mode, rest));
    }
}

/// `WrappedContactData`: byte 0 says how often the others are repeated.
pub fn wrapped_contact_data(input: &[u8]) {
    let Some((mode, rest)) = split_mode(input) else {
        return;
    };
    let bytes = repeated(mode, rest);
    let record = bounded(bytes.len(), CONTACT_CONSTANT_BYTES, || {
        decode_record(Bytes::copy_from_slice(&bytes))
    });
    let Ok(record) = record else { return };
    assert!(record.client_labels.len() <= MOST_ELEMENTS);
    let again = WrappedContactData::decode(Bytes::from(record.encode_to_vec()));
    assert_eq!(again.as_ref(), Ok(&record));
    for certificate in record.signatures.iter().flat_map(|s| &s.certificate) {
        read_certificate(certificate);
    }
    read_contact(&record.contact_data);
}

/// A certificate: DER of an agent, or PEM, a zero byte and the PEM of a key.
pub fn certificate(input: &[u8]) {
    if input.len() > MOST_INPUT_BYTES {
        return;
    }
    read_certificate(input);
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let (certificates, key) = text.split_once('\0').unwrap_or((text, ""));
    let Err(error) = check_certificate(certificates, key) else {
        return;
    };
    // Keys have no spaces, and the error's own text is no secret.
    let secret = key
        .lines()
        .filter(|line| line.len() >= 32 && !line.contains(' '));
    for line in secret {
        assert!(!error.contains(line), "an error quotes the key: {error}");
    }
}

fn read_contact(bytes: &[u8]) {
    let contact = bounded(bytes.len(), CONTACT_CONSTANT_BYTES, || {
        decode_contact(Bytes::copy_from_slice(bytes))
    });
    let Ok(contact) = contact else { return };
    assert!(contact.messages.len() <= MOST_MESSAGES);
    assert!(contact.allowed_messages.len() <= MOST_ELEMENTS);
    let again = ContactData::decode(Bytes::from(contact.encode_to_vec()));
    assert_eq!(again.as_ref(), Ok(&contact));
    contact.messages.into_iter().for_each(read_message);
}

fn read_message(mut message: Message) {
    let client = ClientId::new(*b"an agent");
    let to_system = message
        .destination
        .as_ref()
        .is_some_and(|destination| destination.service_name == "system");
    if to_system {
        let bytes = message.data.as_ref().map_or(0, |data| data.value.len());
        // Read or refused, but neither a panic nor much memory.
        let _outcome = bounded(bytes, REPORT_CONSTANT_BYTES, || read_report(&message));
    }
    if stamp(client, &mut message).is_err() {
        return;
    }
    let source = message.source.as_ref().expect("checked");
    assert_eq!(source.client_id, client.to_bytes());
    let id = MessageId::for_source(
        Some(client),
        &source.service_name,
        &message.source_message_id,
    );
    assert_eq!(message.message_id, id.to_bytes());
    assert!(message.result.is_none() && message.validation_info.is_none());

    message.creation_time = Some(timestamp(UNIX_EPOCH + Duration::from_secs(1)));
    let Ok(record) = MessageRecord::parse("fuzz", &message) else {
        return;
    };
    let again = MessageRecord::parse("fuzz", &record.clone().into_message());
    assert_eq!(again.expect("it was stored once"), record);
}

fn read_certificate(der: &[u8]) {
    let identity = bounded(der.len(), CERTIFICATE_CONSTANT_BYTES, || identity(der));
    if let Some((client, key)) = identity {
        assert_eq!(client, ClientId::from_public_key(&key));
        assert!(!key.is_empty() && der.windows(key.len()).any(|part| part == key));
    }
}
