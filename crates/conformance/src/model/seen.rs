//! What can be seen of a store without changing it.

use std::ops::Range;

use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::server::{Client, ClientContact, ClientResourceUsageRecord};
use fleethold_store::{
    BroadcastId, BroadcastInfo, ClientData, ClientId, Result, Store, StoredFile, clock,
};
use futures::TryStreamExt;
use futures::future::{join, join_all};

use super::calls::{client, file_name, message_id};
use super::ops::{CLIENTS, FILES, MESSAGES, Op};
use crate::samples::{WITH_DATA, seconds};

/// Where to look. Active broadcasts always show, because time changes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    messages: bool,
    /// Of which clients all is read.
    clients: (u8, u8),
    /// Which files are read.
    files: (u8, u8),
    /// Whether the other ways of reading the same are taken, too.
    other_ways: bool,
}

impl Look {
    pub(crate) const EVERYWHERE: Self = Self {
        messages: true,
        clients: (0, CLIENTS),
        files: (0, FILES),
        other_ways: true,
    };

    /// Looks where a step can have changed something.
    pub(crate) fn after(op: &Op) -> Self {
        let nowhere = Self {
            messages: false,
            clients: (0, 0),
            files: (0, 0),
            other_ways: false,
        };
        match op {
            Op::Reopen | Op::Drop { .. } => Self::EVERYWHERE,
            Op::StoreMessages { .. }
            | Op::SetMessageResult { .. }
            | Op::SetMessageResults { .. }
            | Op::Release { .. }
            | Op::DeletePendingMessages { .. }
            | Op::Claim { .. }
            | Op::ClaimOnServer { .. } => Self {
                messages: true,
                ..nowhere
            },
            Op::StoreContact { client, .. } | Op::SaveBroadcastMessage { client, .. } => Self {
                messages: true,
                clients: (*client, *client + 1),
                ..nowhere
            },
            Op::AddClient { client, .. }
            | Op::Enrol { client, .. }
            | Op::AddClientLabel { client, .. }
            | Op::RemoveClientLabel { client, .. }
            | Op::BlacklistClient { client }
            | Op::RecordClientContact { client, .. }
            | Op::RecordUsage { client, .. } => Self {
                clients: (*client, *client + 1),
                ..nowhere
            },
            Op::StoreFile { file, .. } | Op::DeleteFile { file } => Self {
                files: (*file, *file + 1),
                ..nowhere
            },
            _ => nowhere,
        }
    }
}

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    messages: Vec<Message>,
    pending: Vec<Message>,
    clients: Vec<Client>,
    active: Vec<BroadcastInfo>,
    of_clients: Vec<OfClient>,
    files: Vec<Option<StoredFile>>,
    other_ways: Option<(u64, Vec<ClientId>)>,
}

#[derive(Clone, Debug, PartialEq)]
struct OfClient {
    data: Option<ClientData>,
    contacts: Vec<ClientContact>,
    usage: Vec<ClientResourceUsageRecord>,
    sent: Vec<BroadcastId>,
}

/// Looks everywhere at once.
pub(crate) async fn see(store: &dyn Store, look: Look) -> Seen {
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    let ids: Vec<_> = (0..MESSAGES).map(message_id).collect();
    let messages = async {
        if !look.messages {
            return (Vec::new(), Vec::new());
        }
        let messages = store.get_messages(&ids, WITH_DATA);
        let pending = store.get_pending_messages(&clients, 0, 0, WITH_DATA);
        let (messages, pending) = join(messages, pending).await;
        (
            found(messages).unwrap_or_default(),
            pending.expect("messages"),
        )
    };
    let listed = async {
        if look.clients.1 == 0 {
            return Vec::new();
        }
        store.list_clients(&[]).await.expect("clients")
    };
    let lists = join(listed, store.list_active_broadcasts());
    let of_clients = join_all(range(look.clients).map(|number| of_client(store, client(number))));
    let files = join_all(range(look.files).map(|number| async move {
        let (service, name) = file_name(number);
        found(store.read_file(&service, &name).await)
    }));
    let ((messages, pending), (listed, active)) = join(messages, lists).await;
    let (of_clients, files) = join(of_clients, files).await;
    let other_ways = if look.other_ways {
        let streamed = store.stream_client_ids(false, None).try_collect();
        let count = store.get_pending_message_count(&clients);
        let (count, streamed) = join(count, streamed).await;
        Some((count.expect("a count"), streamed.expect("ids")))
    } else {
        None
    };
    Seen {
        messages,
        pending,
        clients: listed,
        active: active.expect("broadcasts"),
        of_clients,
        files,
        other_ways,
    }
}

fn range((start, end): (u8, u8)) -> Range<u8> {
    start..end
}

async fn of_client(store: &dyn Store, id: ClientId) -> OfClient {
    let far = clock::timestamp_from_epoch_nanos(i64::MAX);
    let start = seconds(0);
    let (data, contacts) = join(store.get_client_data(id), store.list_client_contacts(id)).await;
    let usage = store.fetch_resource_usage_records(id, &start, &far);
    let (usage, sent) = join(usage, store.list_sent_broadcasts(id)).await;
    OfClient {
        data: found(data),
        contacts: contacts.expect("contacts"),
        usage: usage.expect("records"),
        sent: sent.expect("broadcasts"),
    }
}

fn found<T>(answer: Result<T>) -> Option<T> {
    match answer {
        Ok(found) => Some(found),
        Err(error) if error.is_not_found() => None,
        Err(error) => panic!("a read fails: {error:?}"),
    }
}
