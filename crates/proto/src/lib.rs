//! Wire types of Fleetspeak, generated from our own .proto files
