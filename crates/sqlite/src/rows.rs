//! Message rows: the columns of `messages` and `payloads` as records.

use std::ops::ControlFlow;
use std::rc::Rc;

use bytes::Bytes;
use fleethold_proto::fleetspeak::Message;
use fleethold_proto::{Any, Timestamp};
use fleethold_store::record::{MessageRecord, ResultRecord};
use fleethold_store::{ClientId, MessageId};
use rusqlite::types::{FromSqlError, Value, ValueRef};
use rusqlite::vtab::array::Array;
use rusqlite::{Connection, Row, params};

use crate::error::Worked;

/// Calls `found` with each of `messages`, in their order, as often as they are
/// listed, without those that do not exist, until it breaks.
///
/// A row that cannot be read is handed over as its error: who claims messages
/// must not stop there.
pub(crate) fn read_messages(
    connection: &Connection,
    messages: &[i64],
    want_data: bool,
    mut found: impl FnMut(i64, rusqlite::Result<Message>) -> Worked<ControlFlow<()>>,
) -> Worked<()> {
    let mut statement = connection.prepare_cached(READ_MESSAGES)?;
    let mut rows = statement.query(params![array(messages.iter().copied()), want_data])?;
    while let Some(row) = rows.next()? {
        let message = read_record(row).map(MessageRecord::into_message);
        if found(row.get(0)?, message)?.is_break() {
            break;
        }
    }
    Ok(())
}

// CROSS JOIN makes the array the outer loop, so its order is that of the result.
const READ_MESSAGES: &str = "\
-- read_messages
SELECT
    messages.message, message_id, source_client, source_service, source_message_id,
    destination_client, destination_service, message_type, creation_seconds, creation_nanos,
    validation_info, annotations, processed_seconds, processed_nanos, failure,
    type_url, payloads.value
FROM rarray(?1) AS wanted
CROSS JOIN messages ON messages.message = wanted.value
LEFT JOIN payloads ON payloads.message = messages.message AND ?2";

/// Reads a message from the second column on, in the order of `READ_MESSAGES`.
pub(crate) fn read_record(row: &Row<'_>) -> rusqlite::Result<MessageRecord> {
    Ok(MessageRecord {
        id: MessageId::try_from(row.get_ref(1)?.as_blob()?).map_err(unreadable)?,
        source_client: client(row.get_ref(2)?)?,
        source_service: row.get(3)?,
        source_message_id: Bytes::copy_from_slice(row.get_ref(4)?.as_blob()?),
        destination_client: client(row.get_ref(5)?)?,
        destination_service: row.get(6)?,
        message_type: row.get(7)?,
        creation_time: Timestamp {
            seconds: row.get(8)?,
            nanos: row.get(9)?,
        },
        validation_info: bytes(row.get_ref(10)?)?,
        annotations: bytes(row.get_ref(11)?)?,
        result: result(row, 12)?,
        data: match row.get(15)? {
            Some(type_url) => Some(Any {
                type_url,
                value: Bytes::copy_from_slice(row.get_ref(16)?.as_blob()?),
            }),
            None => None,
        },
    })
}

/// Reads processed seconds and nanos and the failure, from column `at` on.
pub(crate) fn result(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<ResultRecord>> {
    let Some(seconds) = row.get(at)? else {
        return Ok(None);
    };
    Ok(Some(ResultRecord {
        processed_time: Timestamp {
            seconds,
            nanos: row.get(at + 1)?,
        },
        failure: row.get(at + 2)?,
    }))
}

fn client(value: ValueRef<'_>) -> rusqlite::Result<Option<ClientId>> {
    value
        .as_blob_or_null()?
        .map(|bytes| ClientId::try_from(bytes).map_err(unreadable))
        .transpose()
}

fn bytes(value: ValueRef<'_>) -> rusqlite::Result<Option<Bytes>> {
    Ok(value.as_blob_or_null()?.map(Bytes::copy_from_slice))
}

/// Turns the error of a stored id into one of its row.
pub(crate) fn unreadable(error: fleethold_store::IdError) -> rusqlite::Error {
    FromSqlError::Other(Box::new(error)).into()
}

/// Makes a parameter for `rarray` of numbers or ids.
pub(crate) fn array<T: Into<Value>>(values: impl IntoIterator<Item = T>) -> Array {
    Rc::new(values.into_iter().map(Into::into).collect())
}

/// Makes a parameter for `rarray` of ids.
pub(crate) fn ids<'a>(ids: impl IntoIterator<Item = &'a (impl AsRef<[u8]> + 'a)>) -> Array {
    array(ids.into_iter().map(|id| id.as_ref().to_vec()))
}
