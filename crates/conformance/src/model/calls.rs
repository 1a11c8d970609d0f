//! What a step means to a store: the call and its answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::{AggregatedResourceUsage, ResourceUsageData};
use fleethold_proto::fleetspeak::server::{
    Broadcast, Client, ClientContact, ClientResourceUsageRecord,
};
use fleethold_proto::fleetspeak::{Annotations, Label, Message, MessageResult, annotations};
use fleethold_store::{
    AllocationId, AllocationInfo, BroadcastId, BroadcastInfo, BroadcastProgress, ClientData,
    ClientId, ContactData, ContactId, MessageId, Result, ServiceLimits, Store, StoredFile,
};
use futures::TryStreamExt;

use super::ops::{Done, Op, Sent};
use crate::processor::Silent;
use crate::samples::{
    SERVICE, address, broadcast, broadcast_id, client_id, contact, data, failure, label, seconds,
    success, tags, to_client, to_server, usage_report,
};

/// Which of the two stores is called: they name contacts and allocations
/// themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Store = 0,
    Model = 1,
}

/// The names that the two stores gave.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) contacts: Vec<[ContactId; 2]>,
    pub(crate) allocations: Vec<[AllocationId; 2]>,
}

impl Names {
    /// Every fourth contact is one that nobody made.
    fn contact(&self, number: u8, side: Side) -> ContactId {
        let number = usize::from(number);
        match self.contacts.len() {
            count if count > 0 && number % 4 < 3 => {
                self.contacts[number % count][side as usize].clone()
            }
            _ if number % 8 == 3 => ContactId::new("zz"),
            _ => ContactId::from_number(0x7fff_ffff),
        }
    }

    fn allocation(&self, number: u8, side: Side) -> AllocationId {
        // The latest ones are those that are still alive.
        match self.allocations.len() {
            0 => AllocationId::new([9; 8]),
            count => {
                self.allocations[count - 1 - usize::from(number) % count.min(4)][side as usize]
            }
        }
    }
}

/// What a call returned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Nothing,
    Messages(Vec<Message>),
    Result(Option<MessageResult>),
    Count(u64),
    Clients(Vec<Client>),
    ClientIds(Vec<ClientId>),
    ClientData(ClientData),
    Contacts(Vec<ClientContact>),
    Contact(ContactId),
    Usage(Vec<ClientResourceUsageRecord>),
    Broadcasts(Vec<BroadcastInfo>),
    BroadcastIds(Vec<BroadcastId>),
    Progress(BroadcastProgress),
    Allocation(Option<AllocationInfo>),
    Time(SystemTime),
    File(StoredFile),
}

/// Makes the call of a step; steps that are no calls do nothing.
pub(crate) async fn call(
    store: &dyn Store,
    now: SystemTime,
    names: &Names,
    side: Side,
    op: &Op,
) -> Result<Answer> {
    Ok(match op {
        Op::StoreMessages { messages, contact } => {
            let contact = contact.map(|number| names.contact(number, side));
            store
                .store_messages(&all_sent(messages), contact.as_ref())
                .await?;
            Answer::Nothing
        }
        Op::SetMessageResult {
            to,
            message,
            result,
        } => {
            let to = to.map(client);
            store
                .set_message_result(to, message_id(*message), &done(*result))
                .await?;
            Answer::Nothing
        }
        Op::SetMessageResults { results } => {
            let results: Vec<_> = results
                .iter()
                .map(|(message, result)| (message_id(*message), done(*result)))
                .collect();
            store.set_message_results(&results).await?;
            Answer::Nothing
        }
        Op::Release {
            client: of,
            messages,
        } => {
            store
                .release_messages(client(*of), &message_ids(messages))
                .await?;
            Answer::Nothing
        }
        Op::GetMessageResult { message } => {
            Answer::Result(store.get_message_result(message_id(*message)).await?)
        }
        Op::GetMessages {
            messages,
            want_data,
        } => Answer::Messages(
            store
                .get_messages(&message_ids(messages), *want_data)
                .await?,
        ),
        Op::GetPendingMessages {
            clients,
            offset,
            limit,
            want_data,
        } => Answer::Messages(
            store
                .get_pending_messages(&client_ids(clients), *offset, *limit, *want_data)
                .await?,
        ),
        Op::GetPendingMessageCount { clients } => Answer::Count(
            store
                .get_pending_message_count(&client_ids(clients))
                .await?,
        ),
        Op::DeletePendingMessages { clients } => {
            store.delete_pending_messages(&client_ids(clients)).await?;
            Answer::Nothing
        }
        Op::Claim {
            client: number,
            limit,
            tokens,
        } => {
            let tokens = tokens.as_ref().map(|tokens| -> ServiceLimits {
                tokens
                    .iter()
                    .map(|(number, tokens)| (service(*number), *tokens))
                    .collect()
            });
            let claim =
                store.client_messages_for_processing(client(*number), *limit, tokens.as_ref());
            Answer::Messages(claim.await?)
        }
        Op::ClaimOnServer { limit } => {
            Answer::Messages(store.server_messages_for_processing(*limit).await?)
        }
        Op::RegisterAndStopProcessor => {
            store.register_message_processor(Arc::new(Silent)).await;
            store.stop_message_processor().await;
            Answer::Nothing
        }
        Op::ListClients { clients } => {
            Answer::Clients(store.list_clients(&client_ids(clients)).await?)
        }
        Op::StreamClientIds {
            include_blacklisted,
            after,
        } => {
            let ids = store.stream_client_ids(*include_blacklisted, after.map(seconds));
            Answer::ClientIds(ids.try_collect().await?)
        }
        Op::GetClientData { client: number } => {
            Answer::ClientData(store.get_client_data(client(*number)).await?)
        }
        Op::AddClient {
            client: number,
            labels,
            blacklisted,
        } => {
            let data = client_data(*number, labels, *blacklisted);
            store.add_client(client(*number), &data).await?;
            Answer::Nothing
        }
        Op::AddClientLabel {
            client: number,
            label,
        } => {
            store
                .add_client_label(client(*number), &client_label(*label))
                .await?;
            Answer::Nothing
        }
        Op::RemoveClientLabel {
            client: number,
            label,
        } => {
            store
                .remove_client_label(client(*number), &client_label(*label))
                .await?;
            Answer::Nothing
        }
        Op::BlacklistClient { client: number } => {
            store.blacklist_client(client(*number)).await?;
            Answer::Nothing
        }
        Op::RecordClientContact {
            client: number,
            flavour,
        } => Answer::Contact(
            store
                .record_client_contact(&flavoured_contact(*number, *flavour))
                .await?,
        ),
        Op::StoreContact {
            client: number,
            flavour,
            messages,
        } => {
            let contact = flavoured_contact(*number, *flavour);
            Answer::Contact(store.store_contact(&contact, &all_sent(messages)).await?)
        }
        Op::Enrol {
            client: number,
            labels,
            flavour,
        } => {
            let data = client_data(*number, labels, false);
            let contact = flavoured_contact(*number, *flavour);
            Answer::Contact(store.enrol(&data, &contact).await?)
        }
        Op::ListClientContacts { client: number } => {
            Answer::Contacts(store.list_client_contacts(client(*number)).await?)
        }
        Op::StreamClientContacts { client: number } => Answer::Contacts(
            store
                .stream_client_contacts(client(*number))
                .try_collect()
                .await?,
        ),
        Op::LinkMessages { contact, messages } => {
            let contact = names.contact(*contact, side);
            store
                .link_messages_to_contact(&contact, &message_ids(messages))
                .await?;
            Answer::Nothing
        }
        Op::RecordUsage {
            client: number,
            flavour,
        } => {
            store
                .record_resource_usage_data(client(*number), &report(*flavour))
                .await?;
            Answer::Nothing
        }
        Op::FetchUsage {
            client: number,
            start,
            end,
        } => {
            let (start, end) = (seconds(*start), seconds(*end));
            Answer::Usage(
                store
                    .fetch_resource_usage_records(client(*number), &start, &end)
                    .await?,
            )
        }
        Op::CreateBroadcast {
            broadcast,
            flavour,
            limit,
        } => {
            store
                .create_broadcast(&flavoured_broadcast(*broadcast, *flavour), *limit)
                .await?;
            Answer::Nothing
        }
        Op::SetBroadcastLimit { broadcast, limit } => {
            store
                .set_broadcast_limit(broadcast_id((*broadcast).into()), *limit)
                .await?;
            Answer::Nothing
        }
        Op::DisableBroadcasts { broadcasts } => {
            let ids: Vec<_> = broadcasts
                .iter()
                .map(|number| broadcast_id((*number).into()))
                .collect();
            store.disable_broadcasts(&ids).await?;
            Answer::Nothing
        }
        Op::SaveBroadcastMessage {
            message,
            broadcast,
            client: number,
            allocation,
        } => {
            let allocation = allocation.map(|number| names.allocation(number, side));
            let broadcast = broadcast_id((*broadcast).into());
            store
                .save_broadcast_message(&flavoured(message), broadcast, client(*number), allocation)
                .await?;
            Answer::Nothing
        }
        Op::ListActiveBroadcasts => Answer::Broadcasts(store.list_active_broadcasts().await?),
        Op::ListSentBroadcasts { client: number } => {
            Answer::BroadcastIds(store.list_sent_broadcasts(client(*number)).await?)
        }
        Op::BroadcastProgress { broadcast } => {
            let id = broadcast_id((*broadcast).into());
            Answer::Progress(store.broadcast_progress(id).await?)
        }
        Op::CreateAllocation {
            broadcast,
            percent,
            seconds,
        } => {
            let id = broadcast_id((*broadcast).into());
            let fraction = f32::from(*percent) / 100.0;
            let expiry = now + Duration::from_secs(*seconds);
            Answer::Allocation(store.create_allocation(id, fraction, expiry).await?)
        }
        Op::CleanupAllocation {
            broadcast,
            allocation,
            sent,
        } => {
            let id = broadcast_id((*broadcast).into());
            let allocation = allocation.map(|number| names.allocation(number, side));
            store.cleanup_allocation(id, allocation, *sent).await?;
            Answer::Nothing
        }
        Op::StoreFile { file, size } => {
            let (service, name) = file_name(*file);
            let content = vec![*file; *size];
            store.store_file(&service, &name, &mut &content[..]).await?;
            Answer::Nothing
        }
        Op::DeleteFile { file } => {
            let (service, name) = file_name(*file);
            store.delete_file(&service, &name).await?;
            Answer::Nothing
        }
        Op::StatFile { file } => {
            let (service, name) = file_name(*file);
            Answer::Time(store.stat_file(&service, &name).await?)
        }
        Op::ReadFile { file } => {
            let (service, name) = file_name(*file);
            Answer::File(store.read_file(&service, &name).await?)
        }
        Op::AdvanceClock { .. } | Op::Reopen | Op::Drop { .. } => Answer::Nothing,
    })
}

pub(crate) fn client(number: u8) -> ClientId {
    client_id(number.into())
}

fn client_ids(numbers: &[u8]) -> Vec<ClientId> {
    numbers.iter().copied().map(client).collect()
}

/// Ids that begin or end alike, as random ones never do.
pub(crate) fn message_id(number: u8) -> MessageId {
    let mut bytes = [0x5a; 32];
    bytes[usize::from(number) % 3 * 12] = number;
    MessageId::new(bytes)
}

fn message_ids(numbers: &[u8]) -> Vec<MessageId> {
    numbers.iter().copied().map(message_id).collect()
}

/// Returns a service and a name; the last one is too long.
pub(crate) fn file_name(number: u8) -> (String, String) {
    match number {
        0 => (SERVICE.into(), "a".into()),
        1 => (SERVICE.into(), "A".into()),
        2 => (String::new(), "../\u{1F980}' ".into()),
        _ => (SERVICE.into(), "ä".repeat(129)),
    }
}

fn service(number: u8) -> String {
    ["alpha", "Alpha", "\u{1F980} "][usize::from(number) % 3].into()
}

/// Returns a label; the last one is too long.
fn client_label(number: u8) -> Label {
    match number {
        0..6 => label(
            SERVICE,
            ["", "a", "A", "a ", "\u{1F980}", "á"][usize::from(number)],
        ),
        _ => label(SERVICE, &"ä".repeat(129)),
    }
}

fn done(result: Done) -> MessageResult {
    match result {
        Done::Success(second) => success(second.into()),
        Done::Failure(second) => failure(
            second.into(),
            ["", "broken", "\u{1F980}'"][usize::from(second) % 3],
        ),
        Done::Timeless => MessageResult::default(),
    }
}

fn all_sent(messages: &[Sent]) -> Vec<Message> {
    messages.iter().map(flavoured).collect()
}

fn flavoured(sent: &Sent) -> Message {
    let number = u64::from(sent.message);
    let plain = match sent.to {
        Some(to) => to_client(number, client(to)),
        None => to_server(number, client(sent.service)),
    };
    let mut message = Message {
        message_id: message_id(sent.message).to_bytes(),
        destination: Some(address(sent.to.map(client), &service(sent.service))),
        data: Some(data(vec![sent.flavour; number as usize])),
        result: sent.result.map(done),
        ..plain
    };
    let long = "ä".repeat(129);
    match sent.flavour {
        1 => message.data = None,
        2 => message.source = None,
        3 => message.message_type = "\u{1F980}'\" ".into(),
        4 => message.message_type = long,
        5 => message.destination = Some(address(sent.to.map(client), &long)),
        6 => {
            message.validation_info = Some(tags("valid"));
            message.annotations = Some(Annotations {
                entries: vec![annotations::Entry {
                    key: "é".into(),
                    value: String::new(),
                }],
            });
        }
        7 => {
            message.creation_time = Some(Timestamp {
                seconds: -7,
                nanos: 999_999_999,
            })
        }
        // Malformed, which the whole call has to be refused for.
        8 => message.creation_time = None,
        9 => message.message_id = Bytes::from_static(&[1; 31]),
        _ => {}
    }
    message
}

fn client_data(number: u8, labels: &[u8], blacklisted: bool) -> ClientData {
    ClientData {
        key: Bytes::from(vec![number; usize::from(number)]),
        labels: labels.iter().copied().map(client_label).collect(),
        blacklisted,
    }
}

fn flavoured_contact(number: u8, flavour: u8) -> ContactData {
    let plain = contact(client(number));
    match flavour % 8 {
        0 => ContactData {
            streaming_to: Some("server:1".into()),
            ..plain
        },
        1 => ContactData {
            client_clock: None,
            addr: "ä".repeat(65),
            ..plain
        },
        2 => ContactData {
            client_clock: Some(seconds(-1)),
            nonce_sent: u64::MAX,
            ..plain
        },
        3 => ContactData {
            streaming_to: Some("x".repeat(129)),
            ..plain
        },
        _ => ContactData {
            nonce_received: flavour.into(),
            ..plain
        },
    }
}

fn report(flavour: u8) -> ResourceUsageData {
    let plain = ResourceUsageData {
        pid: flavour.into(),
        ..usage_report()
    };
    match flavour % 6 {
        0 => ResourceUsageData {
            resource_usage: None,
            ..plain
        },
        1 => ResourceUsageData {
            data_timestamp: None,
            ..plain
        },
        2 => ResourceUsageData {
            scope: "ä".repeat(129),
            resource_usage: Some(AggregatedResourceUsage {
                mean_user_cpu_rate: f64::NAN,
                max_user_cpu_rate: f64::INFINITY,
                mean_resident_memory: -1e300,
                ..AggregatedResourceUsage::default()
            }),
            ..plain
        },
        _ => plain,
    }
}

fn flavoured_broadcast(number: u8, flavour: u8) -> Broadcast {
    let plain = Broadcast {
        expiration_time: flavour
            .is_multiple_of(3)
            .then(|| seconds(100_000 + 20 * i64::from(flavour))),
        ..broadcast(number.into())
    };
    let grouped = Broadcast {
        group_name: "group".into(),
        ..plain.clone()
    };
    match flavour % 10 {
        0..4 => grouped,
        4 => Broadcast {
            destination: Some(address(None, SERVICE)),
            ..grouped
        },
        5 => Broadcast {
            required_labels: vec![client_label(2), client_label(1), client_label(1)],
            ..grouped
        },
        6 => Broadcast {
            data: None,
            destination: Some(address(None, "")),
            ..plain
        },
        7 if flavour % 4 == 3 => Broadcast {
            source: None,
            ..grouped
        },
        _ => plain,
    }
}
