//! Wire types of Fleetspeak, generated from our own .proto files.
//!
//! Modules mirror the proto packages: package `fleetspeak.server` is [`fleetspeak::server`], and the gRPC code of a
//! service lies beside its messages, for example [`fleetspeak::server::admin_server`]. Around them there is what
//! every user of the messages needs: [`pack`] and [`unpack`] for [`Any`], and [`text`] for configuration files.
//!
//! ```
//! use fleethold_proto::fleetspeak::{grpcservice, server};
//! use fleethold_proto::{text, unpack};
//!
//! let config: server::ServerConfig = text::parse(
//!     r#"services {
//!          name: "GRR"
//!          factory: "GRPC"
//!          config { [type.googleapis.com/fleetspeak.grpcservice.Config] { target: "localhost:11111" } }
//!        }"#,
//! )?;
//! let back_end: grpcservice::Config = unpack(config.services[0].config.as_ref().unwrap())?;
//! assert_eq!(back_end.target, "localhost:11111");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//!
//! * Packages, names, numbers and types of messages, fields and services are those of Fleetspeak, so binary, gRPC and
//!   text forms are interchangeable with the stock programs. Fields that a message does not know are dropped when it
//!   is decoded.
//! * All `bytes` fields, also the value of [`Any`], are [`bytes::Bytes`]: decoding from `Bytes` copies no payload.
//! * Maps are ordered, so equal messages have equal encodings.
//! * No input makes this crate panic or overflow the stack.

mod any;
pub mod text;

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    deprecated,
    rustdoc::all,
    clippy::all,
    clippy::use_self,
    clippy::clone_on_ref_ptr,
    clippy::large_futures,
    reason = "generated"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

pub use any::{UnpackError, pack, unpack};
pub use generated::google::protobuf::Any;
pub use generated::{fleethold, fleetspeak, google};
pub use prost::Name;
pub use prost_types::{Duration, Timestamp};

/// Holds the serialized `FileDescriptorSet` of all messages, for reflection.
pub static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use crate::Timestamp;
    use crate::fleetspeak::grpcservice::processor_server;
    use crate::fleetspeak::server::{ClientContact, admin_server};
    use crate::fleetspeak::{ContactData, WrappedContactData};

    #[test]
    fn services_have_the_names_that_stock_programs_call() {
        assert_eq!(admin_server::SERVICE_NAME, "fleetspeak.server.Admin");
        assert_eq!(
            processor_server::SERVICE_NAME,
            "fleetspeak.grpcservice.Processor"
        );
    }

    #[test]
    fn the_first_record_of_a_stock_agent_decodes_and_encodes_to_itself() {
        let record = Bytes::from_static(
            b"\x0a\x1a\x1a\x0c\x08\xd5\xe1\x8b\xd8\x06\x10\xbb\xb6\xdc\xc4\x02\x32\x0a\x0a\x06system\x10d\
              \x1a\x05amd64\x1a\x05linux\x1a\x04lab1",
        );
        let wrapped = WrappedContactData::decode(record.clone()).unwrap();
        assert_eq!(wrapped.client_labels, ["amd64", "linux", "lab1"]);
        assert_eq!(wrapped.encode_to_vec(), record);
        assert!(
            record
                .as_ptr_range()
                .contains(&wrapped.contact_data.as_ptr())
        );

        let contact = ContactData::decode(wrapped.contact_data.clone()).unwrap();
        let expected = ContactData {
            client_clock: Some(Timestamp {
                seconds: 1_795_354_837,
                nanos: 680_991_547,
            }),
            allowed_messages: [("system".into(), 100)].into(),
            ..Default::default()
        };
        assert_eq!(contact, expected);
        assert_eq!(contact.encode_to_vec(), wrapped.contact_data);
    }

    #[test]
    fn nonces_of_contacts_have_fixed_width() {
        let contact = ClientContact {
            sent_nonce: 1,
            received_nonce: 2,
            ..Default::default()
        };
        assert_eq!(
            contact.encode_to_vec(),
            b"\x09\x01\0\0\0\0\0\0\0\x11\x02\0\0\0\0\0\0\0"
        );
    }
}
