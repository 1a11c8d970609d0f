//! Doors to what reads a stranger's bytes, for `crates/fuzz-targets` only.

use bytes::Bytes;
use fleethold_proto::fleetspeak::{ContactData, Message, WrappedContactData};
use fleethold_store::ClientId;

use crate::services::system::Report;
use crate::{contacts, tls, wire};

pub use crate::https::fuzzing::{
    Download, MOST_RECORD_BYTES, ProxyStart, file_of, identify, read_poll, read_proxy_header,
    read_stream, serve_file,
};
pub use crate::services::grpc::read_target;

/// The most messages in one contact.
pub const MOST_MESSAGES: usize = wire::MOST_MESSAGES;

/// The most elements of any other list.
pub const MOST_ELEMENTS: usize = wire::MOST_ELEMENTS;

/// Decodes what an agent puts around its contact data.
pub fn decode_record(bytes: Bytes) -> Result<WrappedContactData, String> {
    wire::decode_record(bytes).map_err(|error| error.to_string())
}

/// Decodes contact data.
pub fn decode_contact(bytes: Bytes) -> Result<ContactData, String> {
    wire::decode_contact(bytes).map_err(|error| error.to_string())
}

/// Sets what only the server may set in a message of `client`, unless it must
/// not send it.
pub fn stamp(client: ClientId, message: &mut Message) -> Result<(), &'static str> {
    contacts::checks::stamp(client, message)
}

/// Reads a message to the service `system`.
pub fn read_report(message: &Message) -> Result<(), String> {
    Report::read(message)
        .map(drop)
        .map_err(|error| format!("{error:?}"))
}

/// Refuses certificates and a key that agents cannot be served with.
pub fn check_certificate(certificates_pem: &str, key_pem: &str) -> Result<(), String> {
    tls::check(certificates_pem, key_pem).map_err(|error| crate::chain(&error))
}

/// Returns the client that a certificate names, and its key.
pub fn identity(certificate: &[u8]) -> Option<(ClientId, Bytes)> {
    tls::identity(certificate)
}
