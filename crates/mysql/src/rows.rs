//! Rows: columns as values, and those of `messages` as records.

use aws_lc_rs::digest;
use bytes::Bytes;
use fleethold_proto::{Any, Timestamp};
use fleethold_store::record::{MessageRecord, ResultRecord};
use fleethold_store::{ClientId, MessageId};
use mysql_async::Row;
use mysql_async::prelude::FromValue;

use crate::error::{Failure, Worked};

/// Takes a column out of a row.
pub(crate) fn take<T: FromValue>(row: &mut Row, at: usize) -> Worked<T> {
    row.take_opt(at)
        .and_then(Result::ok)
        .ok_or_else(|| Failure::Unreadable(format!("column {at} has another type").into()))
}

/// Takes an id out of a row.
pub(crate) fn take_id<T>(row: &mut Row, at: usize) -> Worked<T>
where
    T: for<'b> TryFrom<&'b [u8], Error = fleethold_store::IdError>,
{
    let bytes: Vec<u8> = take(row, at)?;
    T::try_from(&bytes[..]).map_err(unreadable)
}

/// Returns an id that stays in its row.
pub(crate) fn id(row: &Row, at: usize) -> Option<MessageId> {
    match row.as_ref(at) {
        Some(mysql_async::Value::Bytes(bytes)) => MessageId::try_from(&bytes[..]).ok(),
        _ => None,
    }
}

fn take_client(row: &mut Row, at: usize) -> Worked<Option<ClientId>> {
    let bytes: Option<Vec<u8>> = take(row, at)?;
    bytes
        .map(|bytes| ClientId::try_from(&bytes[..]).map_err(unreadable))
        .transpose()
}

pub(crate) fn unreadable(error: fleethold_store::IdError) -> Failure {
    Failure::Unreadable(error.to_string().into())
}

/// Takes the columns of [`MESSAGE_COLUMNS`].
///
/// [`MESSAGE_COLUMNS`]: crate::messages
pub(crate) fn message(row: &mut Row) -> Worked<MessageRecord> {
    let blob = |bytes: Option<Vec<u8>>| bytes.map(Bytes::from);
    Ok(MessageRecord {
        id: take_id(row, 0)?,
        source_client: take_client(row, 1)?,
        source_service: take(row, 2)?,
        source_message_id: blob(take(row, 3)?).unwrap_or_default(),
        destination_client: take_client(row, 4)?,
        destination_service: take(row, 5)?,
        message_type: take::<Option<String>>(row, 6)?.unwrap_or_default(),
        creation_time: Timestamp {
            seconds: take(row, 7)?,
            nanos: take(row, 8)?,
        },
        validation_info: blob(take(row, 9)?),
        annotations: blob(take(row, 10)?),
        result: result(row, 11)?,
        data: match take::<Option<String>>(row, 15)? {
            Some(type_url) => Some(Any {
                type_url,
                value: blob(take(row, 16)?).unwrap_or_default(),
            }),
            None => None,
        },
    })
}

/// Takes processed seconds and nanos, `failed` and its reason, from column `at` on.
pub(crate) fn result(row: &mut Row, at: usize) -> Worked<Option<ResultRecord>> {
    let Some(seconds) = take(row, at)? else {
        return Ok(None);
    };
    let failed: Option<i64> = take(row, at + 2)?;
    let reason: Option<String> = take(row, at + 3)?;
    Ok(Some(ResultRecord {
        processed_time: Timestamp {
            seconds,
            nanos: take::<Option<i32>>(row, at + 1)?.unwrap_or_default(),
        },
        failure: failed
            .is_some_and(|failed| failed != 0)
            .then(|| reason.unwrap_or_default()),
    }))
}

/// The queue of messages to the server.
pub(crate) const SERVER_QUEUE: &[u8] = &[];

/// Names the queue of messages to a service of a client: the client and 64 bits
/// of the SHA-256 of the service's name. Stored, so it never changes. Whoever
/// claims looks at the names, too.
pub(crate) fn queue(client: ClientId, service: &str) -> [u8; 16] {
    let hash = digest::digest(&digest::SHA256, service.as_bytes());
    let mut queue = [0; 16];
    queue[..8].copy_from_slice(client.as_bytes());
    queue[8..].copy_from_slice(&hash.as_ref()[..8]);
    queue
}

/// Returns the first and the last queue that a client can have.
pub(crate) fn queues(client: ClientId) -> [[u8; 16]; 2] {
    let (mut first, mut last) = ([0; 16], [0xff; 16]);
    first[..8].copy_from_slice(client.as_bytes());
    last[..8].copy_from_slice(client.as_bytes());
    [first, last]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_part_of_the_layout() {
        let client = ClientId::new([1, 2, 3, 4, 5, 6, 7, 8]);
        let found = queue(client, "FRR");
        assert_eq!(found[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        let [first, last] = queues(client);
        assert!(first <= found && found <= last);
        // SHA-256 of nothing.
        assert_eq!(
            queue(client, "")[8..],
            [0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14]
        );
    }
}
