//! The contract of a Fleetspeak datastore.
//!
//! A Fleetspeak server keeps all it knows behind one interface. This crate is
//! that interface in Rust: [`Store`], made of [`MessageStore`], [`ClientStore`],
//! [`BroadcastStore`] and [`FileStore`], with its types, its arithmetic, and
//! [`MemoryStore`], a complete implementation for tests. Use a backend crate to
//! keep data; use this crate to write against any of them, or to write one.
//!
//! # What every store promises
//!
//! * Every method may be called from many tasks at once.
//! * Every call is all or nothing, and durable when it returns success.
//! * A call that is dropped half-way leaves no lock, no open transaction and no
//!   half result.
//! * Hostile input cannot crash the process, damage a row, or make later calls
//!   fail; the limits are in [`limits`].
//! * Time comes from a [`Clock`], chance from a [`Random`]; both are handed in.
//!
//! "Specification section" in these pages refers to the project's store
//! semantics, whose choices are summed up in `docs/compatibility.md`.
//!
//! # From the Fleetspeak `db` package
//!
//! | `db` | here | what changed |
//! | --- | --- | --- |
//! | `Store` | [`Store`] | |
//! | `Store.IsNotFound` | [`Error::is_not_found`] | on the error |
//! | `Store.Close` | [`Store::close`] | stops the processor first |
//! | `ErrBroadcastDisabled`, `ErrNotSupported` | [`ErrorKind::BroadcastDisabled`], [`ErrorKind::NotSupported`] | one error type, more kinds |
//! | `MessageStore` | [`MessageStore`] | |
//! | `StoreMessages` | [`MessageStore::store_messages`] | `None` for the empty contact |
//! | `SetMessageResult` | [`MessageStore::set_message_result`] | `None` for the empty client id |
//! | – | [`MessageStore::set_message_results`] | new: many in one transaction |
//! | – | [`MessageStore::release_messages`] | new: a claim that led to nothing ends at once |
//! | `GetMessageResult` | [`MessageStore::get_message_result`] | `None` for nil |
//! | `GetMessages` | [`MessageStore::get_messages`] | |
//! | `GetPendingMessages` | [`MessageStore::get_pending_messages`] | |
//! | `GetPendingMessageCount` | [`MessageStore::get_pending_message_count`] | |
//! | `DeletePendingMessages` | [`MessageStore::delete_pending_messages`] | |
//! | `ClientMessagesForProcessing` | [`MessageStore::client_messages_for_processing`] | `None` for the nil map; messages or an error, never both |
//! | `RegisterMessageProcessor`, `StopMessageProcessor` | [`MessageStore::register_message_processor`], [`MessageStore::stop_message_processor`] | |
//! | – | [`MessageStore::server_messages_for_processing`] | new: the claim behind the processor |
//! | `MessageProcessor.Process` | [`MessageProcessor::process`] | never called with no messages |
//! | `ClientStore` | [`ClientStore`] | |
//! | `ListClients` | [`ClientStore::list_clients`] | |
//! | `StreamClientIds` | [`ClientStore::stream_client_ids`] | a stream for the callback |
//! | `GetClientData` | [`ClientStore::get_client_data`] | |
//! | `AddClient` | [`ClientStore::add_client`] | |
//! | `AddClientLabel`, `RemoveClientLabel` | [`ClientStore::add_client_label`], [`ClientStore::remove_client_label`] | |
//! | `BlacklistClient` | [`ClientStore::blacklist_client`] | |
//! | `RecordClientContact` | [`ClientStore::record_client_contact`] | |
//! | – | [`ClientStore::store_contact`] | new: contact and messages in one transaction |
//! | – | [`ClientStore::enrol`] | new: client and first contact in one transaction |
//! | `ListClientContacts` | [`ClientStore::list_client_contacts`] | |
//! | `StreamClientContacts` | [`ClientStore::stream_client_contacts`] | a stream for the callback |
//! | `LinkMessagesToContact` | [`ClientStore::link_messages_to_contact`] | |
//! | `RecordResourceUsageData` | [`ClientStore::record_resource_usage_data`] | |
//! | `FetchResourceUsageRecords` | [`ClientStore::fetch_resource_usage_records`] | |
//! | `BroadcastStore` | [`BroadcastStore`] | |
//! | `CreateBroadcast` | [`BroadcastStore::create_broadcast`] | |
//! | `SetBroadcastLimit` | [`BroadcastStore::set_broadcast_limit`] | |
//! | `DisableBroadcasts` | [`BroadcastStore::disable_broadcasts`] | |
//! | `SaveBroadcastMessage` | [`BroadcastStore::save_broadcast_message`] | `None` for the empty allocation id |
//! | `ListActiveBroadcasts` | [`BroadcastStore::list_active_broadcasts`] | |
//! | `ListSentBroadcasts` | [`BroadcastStore::list_sent_broadcasts`] | |
//! | – | [`BroadcastStore::broadcast_progress`] | new: how many messages have which result |
//! | `CreateAllocation` | [`BroadcastStore::create_allocation`] | `None` for nil |
//! | `CleanupAllocation` | [`BroadcastStore::cleanup_allocation`] | `None` for the empty allocation id |
//! | `FileStore` | [`FileStore`] | |
//! | `StoreFile`, `DeleteFile`, `StatFile`, `ReadFile` | [`FileStore::store_file`], [`FileStore::delete_file`], [`FileStore::stat_file`], [`FileStore::read_file`] | content as shared bytes |
//! | `ClientData`, `ContactData`, `ContactID` | [`ClientData`], [`ContactData`], [`ContactId`] | `Clone` is derived |
//! | `BroadcastInfo`, `AllocationInfo` | [`BroadcastInfo`], [`AllocationInfo`] | |
//! | `BroadcastDisabled`, `BroadcastUnlimited` | [`BROADCAST_DISABLED`], [`BROADCAST_UNLIMITED`] | |
//! | `ComputeBroadcastAllocation` | [`compute_broadcast_allocation`] | counts both sent and allocated |
//! | `ComputeBroadcastAllocationCleanup` | [`compute_broadcast_allocation_cleanup`] | saturates instead of failing |
//! | `LabelsEqual` | [`labels_equal`] | |
//! | `Now`, `NowProto` | [`Clock::now`], [`timestamp`](clock::timestamp) | handed in |
//! | `ClientRetryTime`, `ServerRetryTime` | [`client_retry_time`], [`server_retry_time`], and on [`Clock`] | handed in; the delay saturates |
//! | `common.ClientID`, `common.MessageID`, `ids.BroadcastID`, `ids.AllocationID` | [`ClientId`], [`MessageId`], [`BroadcastId`], [`AllocationId`] | never empty; `Option` where upstream allows that |

pub mod clock;
pub mod dropped;
pub mod gather;
pub mod limits;
pub mod maintenance;
pub mod record;
pub mod retry;

mod broadcasts;
mod clients;
mod error;
mod files;
mod ids;
mod memory;
mod messages;
mod processor;
mod random;
mod stats;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

pub use broadcasts::{
    ALLOCATION_GRACE, AllocationInfo, BROADCAST_DISABLED, BROADCAST_UNLIMITED, BroadcastInfo,
    BroadcastProgress, BroadcastStore, compute_broadcast_allocation,
    compute_broadcast_allocation_cleanup,
};
pub use clients::{ClientData, ClientStore, ContactData, ContactId, labels_equal};
pub use clock::{Clock, ManualClock, SystemClock, client_retry_time, server_retry_time};
pub use error::{Error, ErrorKind, Outcome, Result};
pub use files::{FileStore, StoredFile, read_content};
pub use ids::{AllocationId, BroadcastId, ClientId, IdError, MessageId};
pub use limits::MAX_PAYLOAD_BYTES;
pub use maintenance::Maintenance;
pub use memory::MemoryStore;
pub use messages::{MessageStore, REMOVED_BY_ADMIN, ServiceLimits};
pub use processor::{ClaimServerMessages, MessageProcessor, ProcessorOptions, ProcessorSlot};
pub use random::Random;
pub use stats::{MOST_OVERDUE_COUNTED, StoreStats, Wait, WaitCounter, Waits};

/// All a Fleetspeak server keeps.
#[async_trait]
pub trait Store: MessageStore + ClientStore + BroadcastStore + FileStore {
    /// Stops the message processor, waits for running calls and releases
    /// everything; a running call of the processor can still store its results.
    /// A second call is no error; other calls fail with
    /// [`ErrorKind::Closed`] afterwards.
    async fn close(&self) -> Result<()>;

    /// Returns whether other processes may use the same data, so that something
    /// may be due of which this one knows nothing.
    fn is_shared(&self) -> bool {
        false
    }

    /// Returns what the store knows of its own load; it costs no more than a
    /// small read, however large the backlog is. A store that knows nothing
    /// need not have this method.
    ///
    /// # Errors
    /// As any read.
    async fn stats(&self) -> Result<StoreStats> {
        Ok(StoreStats::default())
    }

    /// Streams clients for whom another process may have stored messages, soon
    /// after it did: a hint that may be missing, late or repeated. The stream
    /// ends at once if the store hears of nothing.
    fn wakeups(&self) -> BoxStream<'static, ClientId> {
        stream::empty().boxed()
    }
}
