//! The steps of a history, and how chance picks them.
//!
//! Numbers select from small pools, so that every list of steps is valid and
//! keeps returning to the same few objects.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// How many objects of each kind there are.
pub(crate) const CLIENTS: u8 = 3;
pub(crate) const MESSAGES: u8 = 20;
pub(crate) const BROADCASTS: u8 = 4;
pub(crate) const FILES: u8 = 3;
const SERVICES: u8 = 3;
const LABELS: u8 = 7;

/// One step of a history.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    StoreMessages {
        messages: Vec<Sent>,
        contact: Option<u8>,
    },
    SetMessageResult {
        to: Option<u8>,
        message: u8,
        result: Done,
    },
    SetMessageResults {
        results: Vec<(u8, Done)>,
    },
    GetMessageResult {
        message: u8,
    },
    GetMessages {
        messages: Vec<u8>,
        want_data: bool,
    },
    GetPendingMessages {
        clients: Vec<u8>,
        offset: u64,
        limit: u64,
        want_data: bool,
    },
    GetPendingMessageCount {
        clients: Vec<u8>,
    },
    DeletePendingMessages {
        clients: Vec<u8>,
    },
    Claim {
        client: u8,
        limit: u64,
        tokens: Option<Vec<(u8, u64)>>,
    },
    ClaimOnServer {
        limit: u64,
    },
    Release {
        client: u8,
        messages: Vec<u8>,
    },
    RegisterAndStopProcessor,
    ListClients {
        clients: Vec<u8>,
    },
    StreamClientIds {
        include_blacklisted: bool,
        after: Option<i64>,
    },
    GetClientData {
        client: u8,
    },
    AddClient {
        client: u8,
        labels: Vec<u8>,
        blacklisted: bool,
    },
    AddClientLabel {
        client: u8,
        label: u8,
    },
    RemoveClientLabel {
        client: u8,
        label: u8,
    },
    BlacklistClient {
        client: u8,
    },
    RecordClientContact {
        client: u8,
        flavour: u8,
    },
    StoreContact {
        client: u8,
        flavour: u8,
        messages: Vec<Sent>,
    },
    Enrol {
        client: u8,
        labels: Vec<u8>,
        flavour: u8,
    },
    ListClientContacts {
        client: u8,
    },
    StreamClientContacts {
        client: u8,
    },
    LinkMessages {
        contact: u8,
        messages: Vec<u8>,
    },
    RecordUsage {
        client: u8,
        flavour: u8,
    },
    FetchUsage {
        client: u8,
        start: i64,
        end: i64,
    },
    CreateBroadcast {
        broadcast: u8,
        flavour: u8,
        limit: u64,
    },
    SetBroadcastLimit {
        broadcast: u8,
        limit: u64,
    },
    DisableBroadcasts {
        broadcasts: Vec<u8>,
    },
    SaveBroadcastMessage {
        message: Sent,
        broadcast: u8,
        client: u8,
        allocation: Option<u8>,
    },
    ListActiveBroadcasts,
    ListSentBroadcasts {
        client: u8,
    },
    BroadcastProgress {
        broadcast: u8,
    },
    CreateAllocation {
        broadcast: u8,
        percent: i8,
        seconds: u64,
    },
    CleanupAllocation {
        broadcast: u8,
        allocation: Option<u8>,
        sent: u64,
    },
    StoreFile {
        file: u8,
        size: usize,
    },
    DeleteFile {
        file: u8,
    },
    StatFile {
        file: u8,
    },
    ReadFile {
        file: u8,
    },
    AdvanceClock {
        micros: u64,
    },
    Reopen,
    /// Polls the call so often and then drops it.
    Drop {
        polls: u8,
        call: Box<Self>,
    },
}

/// A message to store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sent {
    pub(crate) message: u8,
    /// `None`: the server.
    pub(crate) to: Option<u8>,
    pub(crate) service: u8,
    /// What is unusual about it.
    pub(crate) flavour: u8,
    pub(crate) result: Option<Done>,
}

/// The result of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Done {
    Success(u8),
    Failure(u8),
    /// Without processed time, which no store accepts.
    Timeless,
}

/// Returns a history of `length` steps.
pub(crate) fn history(random: &mut StdRng, length: usize) -> Vec<Op> {
    (0..length).map(|_| op(random)).collect()
}

fn op(random: &mut StdRng) -> Op {
    match random.random_range(0..24) {
        0 => Op::Drop {
            polls: random.random_range(1..5),
            call: Box::new(call(random)),
        },
        1 if random.random_bool(0.3) => Op::Reopen,
        1..4 => Op::AdvanceClock {
            micros: *[0, 1, 999_999, 60_000_000, 600_000_000, 900_000_000]
                .choose(random)
                .expect("a choice"),
        },
        _ => call(random),
    }
}

fn call(random: &mut StdRng) -> Op {
    // The calls that change most come most often.
    match random.random_range(0..100) {
        0..14 => Op::StoreMessages {
            messages: many(random, 4, sent),
            contact: random.random_bool(0.3).then(|| random.random()),
        },
        14..17 => Op::SetMessageResult {
            to: random.random_bool(0.5).then(|| client(random)),
            message: message(random),
            result: done(random),
        },
        17..19 => Op::SetMessageResults {
            results: many(random, 4, |random| (message(random), done(random))),
        },
        19 => Op::GetMessageResult {
            message: message(random),
        },
        20 => Op::GetMessages {
            messages: many(random, 4, message),
            want_data: random.random(),
        },
        21..23 => Op::GetPendingMessages {
            clients: many(random, 4, client),
            offset: random.random_range(0..4),
            limit: random.random_range(0..4),
            want_data: random.random(),
        },
        23 => Op::GetPendingMessageCount {
            clients: many(random, 4, client),
        },
        24 => Op::DeletePendingMessages {
            clients: many(random, 2, client),
        },
        25..35 => Op::Claim {
            client: client(random),
            limit: count(random),
            tokens: random.random_bool(0.5).then(|| {
                many(random, 3, |random| {
                    (random.random_range(0..SERVICES), count(random))
                })
            }),
        },
        35..38 => Op::ClaimOnServer {
            limit: count(random),
        },
        38 => Op::Release {
            client: client(random),
            messages: many(random, 6, message),
        },
        39 if random.random_bool(0.2) => Op::RegisterAndStopProcessor,
        39..41 => Op::ListClients {
            clients: many(random, 4, client),
        },
        41 => Op::StreamClientIds {
            include_blacklisted: random.random(),
            after: random.random_bool(0.7).then(|| second(random)),
        },
        42 => Op::GetClientData {
            client: client(random),
        },
        43..46 => Op::Enrol {
            client: client(random),
            labels: many(random, 3, label),
            flavour: random.random(),
        },
        46..49 => Op::AddClient {
            client: client(random),
            labels: many(random, 3, label),
            blacklisted: random.random_bool(0.2),
        },
        49..51 => Op::AddClientLabel {
            client: client(random),
            label: label(random),
        },
        51..53 => Op::RemoveClientLabel {
            client: client(random),
            label: label(random),
        },
        53 => Op::BlacklistClient {
            client: client(random),
        },
        54..57 => Op::RecordClientContact {
            client: client(random),
            flavour: random.random(),
        },
        57..60 => Op::StoreContact {
            client: client(random),
            flavour: random.random(),
            messages: many(random, 3, sent),
        },
        60 => Op::ListClientContacts {
            client: client(random),
        },
        61 => Op::StreamClientContacts {
            client: client(random),
        },
        62..64 => Op::LinkMessages {
            contact: random.random(),
            messages: many(random, 3, message),
        },
        64..66 => Op::RecordUsage {
            client: client(random),
            flavour: random.random(),
        },
        66 => Op::FetchUsage {
            client: client(random),
            start: second(random),
            end: second(random),
        },
        67..72 => Op::CreateBroadcast {
            broadcast: broadcast(random),
            flavour: random.random(),
            limit: limit(random),
        },
        72..74 => Op::SetBroadcastLimit {
            broadcast: broadcast(random),
            limit: limit(random),
        },
        74 => Op::DisableBroadcasts {
            broadcasts: many(random, 2, broadcast),
        },
        75..83 => Op::SaveBroadcastMessage {
            message: sent(random),
            broadcast: broadcast(random),
            client: client(random),
            allocation: random.random_bool(0.7).then(|| random.random()),
        },
        83 => Op::ListActiveBroadcasts,
        84 => Op::ListSentBroadcasts {
            client: client(random),
        },
        85 => Op::BroadcastProgress {
            broadcast: broadcast(random),
        },
        86..90 => Op::CreateAllocation {
            broadcast: broadcast(random),
            percent: *[-1, 0, 10, 50, 50, 100].choose(random).expect("a choice"),
            seconds: *[0, 60, 900].choose(random).expect("a choice"),
        },
        90..93 => Op::CleanupAllocation {
            broadcast: broadcast(random),
            allocation: random.random_bool(0.8).then(|| random.random()),
            sent: random.random_range(0..3),
        },
        93..96 => Op::StoreFile {
            file: random.random_range(0..FILES + 1),
            size: *[0, 1, 5_000].choose(random).expect("a choice"),
        },
        96..98 => Op::DeleteFile {
            file: random.random_range(0..FILES),
        },
        98 => Op::StatFile {
            file: random.random_range(0..FILES),
        },
        _ => Op::ReadFile {
            file: random.random_range(0..FILES),
        },
    }
}

fn sent(random: &mut StdRng) -> Sent {
    Sent {
        message: message(random),
        to: random.random_bool(0.7).then(|| client(random)),
        service: random.random_range(0..SERVICES),
        // Most are usual.
        flavour: if random.random_bool(0.6) {
            0
        } else {
            random.random_range(1..10)
        },
        result: random.random_bool(0.2).then(|| done(random)),
    }
}

fn done(random: &mut StdRng) -> Done {
    match random.random_range(0..20) {
        0..10 => Done::Success(random.random()),
        10..19 => Done::Failure(random.random()),
        _ => Done::Timeless,
    }
}

fn many<T>(random: &mut StdRng, most: usize, one: impl Fn(&mut StdRng) -> T) -> Vec<T> {
    let count = random.random_range(0..=most);
    (0..count).map(|_| one(random)).collect()
}

fn client(random: &mut StdRng) -> u8 {
    random.random_range(0..CLIENTS)
}

fn message(random: &mut StdRng) -> u8 {
    random.random_range(0..MESSAGES)
}

fn broadcast(random: &mut StdRng) -> u8 {
    random.random_range(0..BROADCASTS)
}

fn label(random: &mut StdRng) -> u8 {
    random.random_range(0..LABELS)
}

fn count(random: &mut StdRng) -> u64 {
    *[0, 1, 2, 3, 10, u64::MAX].choose(random).expect("a choice")
}

fn limit(random: &mut StdRng) -> u64 {
    *[0, 1, 2, 3, 8, u64::MAX].choose(random).expect("a choice")
}

/// Histories start at second 100,000.
fn second(random: &mut StdRng) -> i64 {
    100_000 + 60 * random.random_range(-1..40)
}
