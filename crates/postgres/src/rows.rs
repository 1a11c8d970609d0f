//! Message rows as records.

use bytes::Bytes;
use fleethold_proto::fleetspeak::Message;
use fleethold_proto::{Any, Timestamp};
use fleethold_store::record::{MessageRecord, ResultRecord};
use fleethold_store::{ClientId, Error, ErrorKind, MessageId};
use tokio_postgres::Row;

pub(crate) type Unreadable = Box<dyn std::error::Error + Send + Sync>;

/// Reads a message from the first sixteen columns of a row: those of `messages`
/// from the id on, then type and value of the data.
pub(crate) fn message(row: &Row) -> Result<Message, Unreadable> {
    record(row).map(MessageRecord::into_message)
}

/// Reads the record of such a message.
pub(crate) fn record(row: &Row) -> Result<MessageRecord, Unreadable> {
    Ok(MessageRecord {
        id: MessageId::try_from(row.try_get::<_, &[u8]>(0)?)?,
        source_client: client(row, 1)?,
        source_service: text(row, 2)?,
        source_message_id: Bytes::copy_from_slice(row.try_get(3)?),
        destination_client: client(row, 4)?,
        destination_service: text(row, 5)?,
        message_type: text(row, 6)?,
        creation_time: Timestamp {
            seconds: row.try_get(7)?,
            nanos: row.try_get(8)?,
        },
        validation_info: bytes(row, 9)?,
        annotations: bytes(row, 10)?,
        result: result(row, 11)?,
        data: match optional_text(row, 14)? {
            Some(type_url) => Some(Any {
                type_url,
                value: bytes(row, 15)?.unwrap_or_default(),
            }),
            None => None,
        },
    })
}

/// Reads processed seconds and nanos and the failure, from column `at` on.
pub(crate) fn result(row: &Row, at: usize) -> Result<Option<ResultRecord>, Unreadable> {
    let Some(seconds) = row.try_get(at)? else {
        return Ok(None);
    };
    Ok(Some(ResultRecord {
        processed_time: Timestamp {
            seconds,
            nanos: row.try_get(at + 1)?,
        },
        failure: optional_text(row, at + 2)?,
    }))
}

pub(crate) fn client(row: &Row, at: usize) -> Result<Option<ClientId>, Unreadable> {
    let bytes = row.try_get::<_, Option<&[u8]>>(at)?;
    Ok(bytes.map(ClientId::try_from).transpose()?)
}

pub(crate) fn bytes(row: &Row, at: usize) -> Result<Option<Bytes>, Unreadable> {
    let bytes = row.try_get::<_, Option<&[u8]>>(at)?;
    Ok(bytes.map(Bytes::copy_from_slice))
}

pub(crate) fn text(row: &Row, at: usize) -> Result<String, Unreadable> {
    Ok(String::from_utf8(row.try_get::<_, Vec<u8>>(at)?)?)
}

pub(crate) fn optional_text(row: &Row, at: usize) -> Result<Option<String>, Unreadable> {
    let bytes = row.try_get::<_, Option<Vec<u8>>>(at)?;
    Ok(bytes.map(String::from_utf8).transpose()?)
}

/// Makes the error of a row that cannot be read.
pub(crate) fn unreadable(operation: &'static str) -> impl FnOnce(Unreadable) -> Error {
    move |error| {
        Error::new(
            ErrorKind::Internal,
            operation,
            "a stored value cannot be read",
        )
        .with_source(error)
    }
}
