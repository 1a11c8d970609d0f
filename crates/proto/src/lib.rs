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
pub use generated::{fleetspeak, google};
pub use prost::Name;
pub use prost_types::{Duration, Timestamp};

/// Holds the serialized `FileDescriptorSet` of all messages, for reflection.
pub static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
