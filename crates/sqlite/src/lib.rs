//! The embedded Fleetspeak datastore on SQLite
