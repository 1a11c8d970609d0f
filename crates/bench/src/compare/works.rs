//! What is compared, in which unit, and what must hold.

/// One work; each has a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Poll,
    PollHandshake,
    Enroll,
    Ingest1,
    Ingest10,
    Ingest100,
    IngestLarge,
    IngestStreaming,
    IngestNoop,
    IngestBatch,
    Insert,
    Deliver,
    PushMedian,
    PushP99,
    StreamMemory,
    Broadcast,
    BroadcastReached,
    BroadcastLimited,
    BroadcastLarge,
    DiskMessage,
    DiskPoll,
    CpuPoll,
    CpuHandshake,
    CpuUp1,
    CpuUp100,
    CpuDown,
    Memory,
    FleetContact,
    FleetHandshake,
    FleetUp,
    FleetDown,
    FleetBroadcast,
    FleetStream,
    MixedCpu,
    MixedArrivalP99,
}

/// What must hold between a system and the stock server, or by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// So many times the stock server's rate.
    Times(f64),
    /// At most so much of the stock server's.
    Part(f64),
    /// At most this.
    AtMost(f64),
}

impl Work {
    /// The works with rows in the table of results.
    pub(crate) const ALL: [Self; 35] = [
        Self::Poll,
        Self::PollHandshake,
        Self::Enroll,
        Self::Ingest1,
        Self::Ingest10,
        Self::Ingest100,
        Self::IngestLarge,
        Self::IngestStreaming,
        Self::IngestNoop,
        Self::IngestBatch,
        Self::Insert,
        Self::Deliver,
        Self::PushMedian,
        Self::PushP99,
        Self::StreamMemory,
        Self::Broadcast,
        Self::BroadcastReached,
        Self::BroadcastLimited,
        Self::BroadcastLarge,
        Self::DiskMessage,
        Self::DiskPoll,
        Self::CpuPoll,
        Self::CpuHandshake,
        Self::CpuUp1,
        Self::CpuUp100,
        Self::CpuDown,
        Self::Memory,
        Self::FleetContact,
        Self::FleetHandshake,
        Self::FleetUp,
        Self::FleetDown,
        Self::FleetBroadcast,
        Self::FleetStream,
        Self::MixedCpu,
        Self::MixedArrivalP99,
    ];

    pub(crate) fn key(self) -> String {
        // Names in JSON are those of the code, with underscores.
        let mut key = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !key.is_empty() {
                key.push('_');
            }
            key.push(letter.to_ascii_lowercase());
        }
        key
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Poll => "idle polls, kept connections",
            Self::PollHandshake => "idle polls, a handshake each",
            Self::Enroll => "enrolments, with handshake",
            Self::Ingest1 => "messages from agents, 1 × 100 B per contact, to GRPC",
            Self::Ingest10 => "messages from agents, 10 × 100 B per contact, to GRPC",
            Self::Ingest100 => "messages from agents, 100 × 100 B per contact, to GRPC",
            Self::IngestLarge => "messages from agents, 10 × 10 KB per contact, to GRPC",
            Self::IngestStreaming => {
                "messages from agents, 100 × 100 B per record, HTTP/2 streams, deflate, to GRPC"
            }
            Self::IngestNoop => "messages from agents, 100 × 100 B per contact, to NOOP",
            Self::IngestBatch => "messages from agents, 100 × 100 B per contact, in batches",
            Self::Insert => "inserts by operators, 32 at once",
            Self::Deliver => "messages to polling agents from a backlog",
            Self::PushMedian => "insert to a waiting stream, median",
            Self::PushP99 => "insert to a waiting stream, p99",
            Self::StreamMemory => "memory of the server per idle stream",
            Self::Broadcast => "broadcast to 1,000 streams, until all have it",
            Self::BroadcastReached => "of these streams, how many have it in time",
            Self::BroadcastLimited => "broadcast to a third of polling agents, until all have it",
            Self::BroadcastLarge => "broadcast to 10,000 streams, until all have it",
            Self::DiskMessage => "disk per processed 100-byte message",
            Self::DiskPoll => "disk per idle poll",
            Self::CpuPoll => "CPU per idle poll, server and database",
            Self::CpuHandshake => "CPU per idle poll with handshake",
            Self::CpuUp1 => "CPU per message from an agent, 1 per contact",
            Self::CpuUp100 => "CPU per message from an agent, 100 per contact",
            Self::CpuDown => "CPU per message to an agent from a backlog",
            Self::Memory => "peak memory of the server after all this",
            Self::FleetContact => "fleet of 10,000, little to do: CPU per idle poll",
            Self::FleetHandshake => {
                "fleet of 10,000, little to do: CPU per idle poll with handshake"
            }
            Self::FleetUp => "fleet of 10,000, little to do: CPU per message on a stream to GRPC",
            Self::FleetDown => {
                "fleet of 10,000, little to do: CPU per message inserted, pushed, acknowledged"
            }
            Self::FleetBroadcast => "fleet of 10,000: CPU per agent that a broadcast reaches",
            Self::FleetStream => "fleet of 10,000: CPU per idle stream and second",
            Self::MixedCpu => "fleet of 10,000: CPU of server and database",
            Self::MixedArrivalP99 => "fleet of 10,000: message at the service, p99",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Poll | Self::PollHandshake => "polls/s",
            Self::Enroll => "agents/s",
            Self::Ingest1
            | Self::Ingest10
            | Self::Ingest100
            | Self::IngestLarge
            | Self::IngestStreaming
            | Self::IngestNoop
            | Self::IngestBatch
            | Self::Insert
            | Self::Deliver => "messages/s",
            Self::PushMedian | Self::PushP99 | Self::MixedArrivalP99 => "ms",
            Self::StreamMemory => "KiB",
            Self::Broadcast | Self::BroadcastLimited | Self::BroadcastLarge => "s",
            Self::BroadcastReached => "agents",
            Self::DiskMessage | Self::DiskPoll => "bytes",
            Self::CpuPoll
            | Self::CpuHandshake
            | Self::CpuUp1
            | Self::CpuUp100
            | Self::CpuDown
            | Self::FleetContact
            | Self::FleetHandshake
            | Self::FleetUp
            | Self::FleetDown
            | Self::FleetBroadcast
            | Self::FleetStream => "µs",
            Self::Memory => "MiB",
            Self::MixedCpu => "% of a core",
        }
    }

    /// Returns whether more is better.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(
            self.unit(),
            "polls/s" | "agents/s" | "messages/s" | "agents"
        )
    }

    /// Returns what must hold on SQLite, and on a database server.
    pub(crate) fn wanted(self) -> Option<[Wanted; 2]> {
        let times = |sqlite, others| Some([Wanted::Times(sqlite), Wanted::Times(others)]);
        let at_most = |sqlite, others| Some([Wanted::AtMost(sqlite), Wanted::AtMost(others)]);
        match self {
            Self::Poll => times(8.0, 3.0),
            Self::Enroll => times(6.0, 3.0),
            Self::Ingest1 => times(6.0, 3.0),
            Self::Ingest100 => times(5.0, 4.0),
            Self::IngestNoop => times(12.0, 6.0),
            Self::Deliver => times(10.0, 4.0),
            Self::PushMedian => at_most(10.0, 20.0),
            Self::PushP99 => at_most(30.0, 60.0),
            Self::StreamMemory => at_most(40.0, 40.0),
            Self::BroadcastLarge => at_most(15.0, 30.0),
            Self::DiskMessage => Some([Wanted::Part(0.5), Wanted::Part(0.6)]),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_has_a_key_of_its_own() {
        let mut keys: Vec<_> = Work::ALL.iter().map(|work| work.key()).collect();
        assert_eq!(keys[0], "poll");
        assert!(keys.contains(&"ingest_noop".to_owned()));
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), Work::ALL.len());
    }
}
