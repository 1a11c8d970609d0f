//! The port for agents over real connections. P-numbers: protocol specification section 7.

#[path = "../agent/mod.rs"]
mod agent;
mod bed;
mod files;
mod frontend;
mod message;
mod records;
mod streaming;
mod tls;
