//! A Fleetspeak server with an embedded store
fn main(){}
