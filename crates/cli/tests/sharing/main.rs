//! This program and the stock server on one MariaDB database: at the same time,
//! one after the other, and back (store specification section 6.6, F-36).
//!
//! Both servers are real ones, and so is the database. Agents are stock ones,
//! except where a case needs rows that no stock agent causes.

#[path = "../../../server/tests/agent/mod.rs"]
mod agent;
mod bed;
mod both;
mod claims;
#[path = "../support/database.rs"]
mod database;
#[allow(
    dead_code,
    unused_imports,
    reason = "the end-to-end tests use the rest"
)]
#[path = "../../../../tests/end_to_end/harness/mod.rs"]
mod harness;
mod rows;
mod takeover;
