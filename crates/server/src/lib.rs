//! The Fleetspeak server as a library
