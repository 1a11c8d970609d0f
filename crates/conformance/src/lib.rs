//! The suite every fleethold store has to pass
