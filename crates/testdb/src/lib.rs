//! Tests only: database servers of their own, in temporary directories and on
//! free ports of loopback, and a proxy that breaks connections to them.
//!
//! A server that was there before is never touched. [`postgres::shared`] and
//! [`mariadb::shared`] start one server for all tests of a user, without
//! durability, and it stops by itself when no test has needed it for some
//! seconds. [`Server`]s made by `private` belong to one test, which may stop,
//! kill and start them; they are durable as the database's defaults are.
//!
//! `FLEETHOLD_TEST_POSTGRES` and `FLEETHOLD_TEST_MYSQL` name another server for
//! the tests that use a shared one, as URLs of a user who may create databases:
//! `postgres://user:password@host:port`.

pub mod galera;
pub mod mariadb;
pub mod postgres;

mod proxy;
mod server;

pub use proxy::{Cut, Held, Proxy};
pub use server::{Server, Shared};
