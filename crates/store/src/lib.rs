//! The contract of a Fleetspeak datastore: traits, ids, clock, error and an in-memory store
