//! fleethold at work with programs we did not write: the stock agent, the
//! stock tools, and services that use the stock Python connectors.
//!
//! Every case starts its own server on free ports of the loopback interface,
//! in a temporary directory. `scripts/test` obtains what the cases need.

#[expect(dead_code, reason = "the measurements use the rest")]
mod harness;

mod blacklisting;
mod broadcasts;
mod command_line;
mod configuration;
mod databases;
mod enrolment;
mod files;
mod grr;
mod messages;
mod restarts;
mod services;
