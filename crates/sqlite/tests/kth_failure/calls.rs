//! A call of every method of the store that reads or writes the database.

use std::time::{Duration, UNIX_EPOCH};

use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Address, Message, MessageResult};
use fleethold_sqlite::SqliteStore;
use fleethold_store::{
    BroadcastStore, ClientData, ClientId, ClientStore, ContactData, FileStore, MessageStore,
    Result, Store,
};
use futures::TryStreamExt;
use futures::future::BoxFuture;

use crate::bed::{CALL_SECONDS, Template, begun, whole};
use crate::history::{
    Kind, base_client, broadcast_id, content, file_name, label, message_id, own_client, to_client,
    to_server,
};

pub(crate) struct Call {
    pub(crate) name: &'static str,
    /// Whether the call changes the database.
    pub(crate) writes: bool,
    /// Makes the call and returns what it answers, as text.
    pub(crate) run: for<'a> fn(&'a SqliteStore, &'a Template) -> BoxFuture<'a, Result<String>>,
}

macro_rules! calls {
    ($($effect:ident $name:ident |$store:ident, $template:ident| $answer:expr;)*) => {
        &[$(Call {
            name: stringify!($name),
            writes: $effect,
            run: |$store, $template| Box::pin(async move {
                // Only some calls need it.
                let _ = $template;
                let answer = $answer;
                Ok(format!("{answer:?}"))
            }),
        }),*]
    };
}

const WRITES: bool = true;
const READS: bool = false;

pub(crate) const CALLS: &[Call] = calls! {
    WRITES store_messages |store, template| {
        let client = own_client(begun(Kind::Claim));
        let messages = [
            to_client(NEW, 0, client),
            to_server(NEW, 1, client),
            with_result(to_server(begun(Kind::Link), 2, client)),
            with_result(to_client(begun(Kind::Results), 0, own_client(begun(Kind::Results)))),
        ];
        store.store_messages(&messages, Some(&template.contact)).await?
    };
    WRITES set_message_result |store, template| {
        let id = message_id(begun(Kind::Results), 0);
        store.set_message_result(None, id, &failure()).await?
    };
    WRITES set_message_results |store, template| {
        let results = [0, 1].map(|part| (message_id(begun(Kind::Results), part), failure()));
        store.set_message_results(&results).await?
    };
    WRITES release_messages |store, template| {
        let client = own_client(whole(Kind::Claim));
        let ids = [0, 1].map(|part| message_id(whole(Kind::Claim), part));
        store.release_messages(client, &ids).await?
    };
    READS stats |store, template| {
        store.stats().await.map(drop)?
    };
    READS get_message_result |store, template| {
        store.get_message_result(message_id(whole(Kind::Results), 0)).await?
    };
    READS get_messages |store, template| {
        let ids = [begun(Kind::Claim), whole(Kind::Contact)].map(|of| message_id(of, 1));
        store.get_messages(&ids, true).await?
    };
    READS get_pending_messages |store, template| {
        let clients = [begun(Kind::Claim), begun(Kind::Results)].map(own_client);
        store.get_pending_messages(&clients, 1, 2, true).await?
    };
    READS get_pending_message_count |store, template| {
        store.get_pending_message_count(&[own_client(begun(Kind::Claim))]).await?
    };
    WRITES delete_pending_messages |store, template| {
        let clients = [begun(Kind::Claim), begun(Kind::Results)].map(own_client);
        store.delete_pending_messages(&clients).await?
    };
    WRITES client_messages_for_processing |store, template| {
        let client = own_client(begun(Kind::Claim));
        store.client_messages_for_processing(client, 10, None).await?
    };
    WRITES server_messages_for_processing |store, template| {
        store.server_messages_for_processing(3).await?
    };
    READS list_clients |store, template| store.list_clients(&[]).await?;
    READS stream_client_ids |store, template| {
        store.stream_client_ids(true, None).try_collect::<Vec<_>>().await?
    };
    READS get_client_data |store, template| {
        store.get_client_data(own_client(whole(Kind::Client))).await?
    };
    WRITES add_client |store, template| {
        let data = ClientData {
            labels: vec![label(1), label(2)],
            ..ClientData::default()
        };
        store.add_client(own_client(NEW), &data).await?
    };
    WRITES add_client_label |store, template| {
        store.add_client_label(own_client(begun(Kind::Client)), &label(9)).await?
    };
    WRITES remove_client_label |store, template| {
        store.remove_client_label(own_client(begun(Kind::Client)), &label(1)).await?
    };
    WRITES blacklist_client |store, template| {
        store.blacklist_client(own_client(begun(Kind::Client))).await?
    };
    WRITES record_client_contact |store, template| {
        store.record_client_contact(&contact(base_client(0))).await?
    };
    WRITES store_contact |store, template| {
        let client = base_client(0);
        let messages = [
            to_server(NEW, 0, client),
            with_result(to_server(NEW, 1, client)),
            to_server(whole(Kind::Contact), 0, client),
        ];
        store.store_contact(&contact(client), &messages).await?
    };
    WRITES enrol |store, template| {
        let data = ClientData {
            labels: vec![label(NEW)],
            ..ClientData::default()
        };
        store.enrol(&data, &contact(own_client(NEW))).await?
    };
    READS list_client_contacts |store, template| {
        store.list_client_contacts(base_client(0)).await?
    };
    READS stream_client_contacts |store, template| {
        store.stream_client_contacts(base_client(0)).try_collect::<Vec<_>>().await?
    };
    WRITES link_messages_to_contact |store, template| {
        let ids = [0, 1].map(|part| message_id(whole(Kind::Contact), part));
        store.link_messages_to_contact(&template.contact, &ids).await?
    };
    WRITES record_resource_usage_data |store, template| {
        let usage = ResourceUsageData {
            scope: "scope".into(),
            process_start_time: Some(seconds(1)),
            data_timestamp: Some(seconds(2)),
            ..ResourceUsageData::default()
        };
        store.record_resource_usage_data(base_client(0), &usage).await?
    };
    READS fetch_resource_usage_records |store, template| {
        let (start, end) = (seconds(0), seconds(1_000_000));
        store.fetch_resource_usage_records(base_client(0), &start, &end).await?
    };
    WRITES create_broadcast |store, template| {
        let broadcast = Broadcast {
            broadcast_id: broadcast_id(NEW).to_bytes(),
            source: Some(Address {
                service_name: "service".into(),
                ..Address::default()
            }),
            required_labels: vec![label(1), label(2)],
            group_name: "group".into(),
            ..Broadcast::default()
        };
        store.create_broadcast(&broadcast, 5).await?
    };
    WRITES set_broadcast_limit |store, template| {
        store.set_broadcast_limit(broadcast_id(begun(Kind::Broadcast)), 30).await?
    };
    WRITES disable_broadcasts |store, template| {
        let ids = [Kind::Broadcast, Kind::EndedBroadcast].map(|kind| broadcast_id(begun(kind)));
        store.disable_broadcasts(&ids).await?
    };
    WRITES save_broadcast_message |store, template| {
        let client = base_client(0);
        let id = broadcast_id(begun(Kind::Broadcast));
        let message = to_client(NEW, 0, client);
        store.save_broadcast_message(&message, id, client, Some(template.allocation)).await?
    };
    READS list_active_broadcasts |store, template| store.list_active_broadcasts().await?;
    READS list_sent_broadcasts |store, template| {
        store.list_sent_broadcasts(base_client(0)).await?
    };
    READS broadcast_progress |store, template| {
        store.broadcast_progress(broadcast_id(begun(Kind::Broadcast))).await?
    };
    WRITES create_allocation |store, template| {
        let id = broadcast_id(begun(Kind::Broadcast));
        let expiry = UNIX_EPOCH + Duration::from_secs(CALL_SECONDS + 1_000);
        let allocation = store.create_allocation(id, 0.5, expiry).await?;
        // The id is random.
        allocation.map(|allocation| allocation.limit)
    };
    WRITES cleanup_allocation |store, template| {
        let id = broadcast_id(begun(Kind::Broadcast));
        store.cleanup_allocation(id, Some(template.allocation), 2).await?
    };
    WRITES store_file |store, template| {
        let name = file_name(whole(Kind::File), 0);
        store.store_file("service", &name, &mut &content(NEW)[..]).await?
    };
    WRITES delete_file |store, template| {
        store.delete_file("service", &file_name(whole(Kind::File), 0)).await?
    };
    READS stat_file |store, template| {
        store.stat_file("service", &file_name(whole(Kind::File), 0)).await?
    };
    READS read_file |store, template| {
        store.read_file("service", &file_name(whole(Kind::File), 0)).await?
    };
};

/// A sequence that is not in the template.
const NEW: u64 = 1_000;

pub(crate) fn contact(client: ClientId) -> ContactData {
    ContactData {
        client_id: client,
        nonce_sent: 1,
        nonce_received: 2,
        addr: "192.0.2.1:1234".into(),
        client_clock: None,
        streaming_to: Some("server:1".into()),
        labels: Vec::new(),
    }
}

fn with_result(message: Message) -> Message {
    Message {
        result: Some(failure()),
        ..message
    }
}

fn failure() -> MessageResult {
    MessageResult {
        processed_time: Some(seconds(60)),
        failed: true,
        failed_reason: "reason".into(),
    }
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}
