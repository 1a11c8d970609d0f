//! Contacts of clients, and their ids.

use std::sync::atomic::{AtomicU32, Ordering};

use fleethold_proto::fleetspeak::server::ClientContact;
use fleethold_store::clock::{epoch_nanos, timestamp_from_epoch_nanos};
use fleethold_store::record::ContactRecord;
use fleethold_store::{ClientId, ContactId, Error, MessageId, Random, Result};

use crate::Shared;
use crate::clients::unknown;
use crate::error::Worked;
use crate::query::{BYTES, BYTES_LIST, INT, INT_LIST, LONG, LONG_LIST, Query, Values, list};
use crate::rows::{self, unreadable};
use crate::transactions::Tx;

const ID_BYTES: usize = 16;
const KEY_BYTES: usize = ClientId::BYTES + ID_BYTES;

/// The key of a contact: its client and 16 bytes; as text, both in hex.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContactKey([u8; KEY_BYTES]);

impl ContactKey {
    fn new(client: ClientId, id: [u8; ID_BYTES]) -> Self {
        let mut key = [0; KEY_BYTES];
        key[..ClientId::BYTES].copy_from_slice(client.as_ref());
        key[ClientId::BYTES..].copy_from_slice(&id);
        Self(key)
    }

    /// Reads a contact id; leading zeros may be missing.
    pub(crate) fn parse(operation: &'static str, contact: &ContactId) -> Result<Self> {
        let digits = contact.as_str().as_bytes();
        let malformed = || Error::invalid(operation, "a contact id is a number in hex");
        if digits.is_empty() || digits.len() > 2 * KEY_BYTES {
            return Err(malformed());
        }
        let mut key = [0; KEY_BYTES];
        let padded = std::iter::repeat_n(&b'0', 2 * KEY_BYTES - digits.len()).chain(digits);
        for (place, digit) in padded.enumerate() {
            let digit = char::from(*digit).to_digit(16).ok_or_else(malformed)?;
            let digit = u8::try_from(digit).expect("below sixteen");
            key[place / 2] = key[place / 2] << 4 | digit;
        }
        Ok(Self(key))
    }

    pub(crate) fn client(&self) -> &[u8] {
        &self.0[..ClientId::BYTES]
    }

    pub(crate) fn id(&self) -> &[u8] {
        &self.0[ClientId::BYTES..]
    }

    pub(crate) fn text(&self) -> ContactId {
        ContactId::new(
            self.0
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>(),
        )
    }
}

/// Makes an id that sorts by time; within one nanosecond, by the order in which
/// this process made them.
pub(crate) fn ordered_id(time_nanos: i64, random: &Random) -> [u8; ID_BYTES] {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut id = [0; ID_BYTES];
    id[..8].copy_from_slice(&first_id(time_nanos));
    id[8..12].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    random.fill(&mut id[12..]);
    id
}

/// Returns what sorts before all ids of this time, and after all earlier ones.
pub(crate) fn first_id(time_nanos: i64) -> [u8; 8] {
    // Signed numbers in the order of bytes.
    (time_nanos.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// A contact that gets recorded now.
pub(crate) struct NewContact {
    pub(crate) record: ContactRecord,
    pub(crate) time_nanos: i64,
    pub(crate) key: ContactKey,
}

impl NewContact {
    pub(crate) fn new(record: ContactRecord, shared: &Shared) -> Self {
        let time_nanos = epoch_nanos(shared.clock.now());
        let id = ordered_id(time_nanos, &shared.random);
        Self {
            key: ContactKey::new(record.client_id, id),
            record,
            time_nanos,
        }
    }

    pub(crate) fn client(&self) -> ClientId {
        self.record.client_id
    }

    /// Records the contact; commits if it is `last`.
    pub(crate) async fn record(&self, tx: &Tx, operation: &'static str, last: bool) -> Worked<()> {
        let record = &self.record;
        let address = record.addr.as_bytes();
        let streaming_to = record.streaming_to.as_ref().map(String::as_bytes);
        let values: Values<'_> = &[
            &self.key.client(),
            &self.key.id(),
            &self.time_nanos,
            &record.nonce_sent.cast_signed(),
            &record.nonce_received.cast_signed(),
            &address,
            &streaming_to,
            &record.client_clock.map(|clock| clock.seconds),
            &record.client_clock.map(|clock| clock.nanos),
        ];
        let rows = if last {
            tx.last(&RECORD, values).await?
        } else {
            tx.rows(&RECORD, values).await?
        };
        if rows.is_empty() {
            return Err(unknown(operation, record.client_id).into());
        }
        Ok(())
    }
}

const RECORD: Query = Query {
    sql: "\
-- record_client_contact
WITH client AS (
    UPDATE clients
    SET last_contact_nanos = $3, last_contact_address = $6, last_contact_streaming_to = $7,
        last_clock_seconds = $8, last_clock_nanos = $9
    WHERE client_id = $1
    RETURNING client_id
), contact AS (
    INSERT INTO contacts (client_id, contact_id, time_nanos, nonce_sent, nonce_received, address)
    SELECT client_id, $2, $3, $4, $5, $6 FROM client
    ON CONFLICT DO NOTHING
)
SELECT 1 FROM client",
    types: &[BYTES, BYTES, LONG, LONG, LONG, BYTES, BYTES, LONG, INT],
};

/// As [`RECORD`], for many clients; returns those that exist.
pub(crate) const RECORD_MANY: Query = Query {
    sql: "\
-- record_client_contact (many)
WITH input AS (
    SELECT
        client_id, contact_id, time_nanos, nonce_sent, nonce_received, address, streaming_to,
        clock_seconds, clock_nanos
    FROM unnest(
        $1::bytea[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[],
        $7::bytea[], $8::bigint[], $9::integer[]
    ) AS given (
        client_id, contact_id, time_nanos, nonce_sent, nonce_received, address, streaming_to,
        clock_seconds, clock_nanos
    )
), client AS (
    UPDATE clients
    SET last_contact_nanos = input.time_nanos, last_contact_address = input.address,
        last_contact_streaming_to = input.streaming_to,
        last_clock_seconds = input.clock_seconds, last_clock_nanos = input.clock_nanos
    FROM input
    WHERE clients.client_id = ANY($1) AND clients.client_id = input.client_id
    RETURNING clients.client_id
), contact AS (
    INSERT INTO contacts (client_id, contact_id, time_nanos, nonce_sent, nonce_received, address)
    SELECT client.client_id, contact_id, time_nanos, nonce_sent, nonce_received, address
    FROM client JOIN input ON input.client_id = client.client_id
    ON CONFLICT DO NOTHING
)
SELECT client_id FROM client",
    types: &[
        BYTES_LIST, BYTES_LIST, LONG_LIST, LONG_LIST, LONG_LIST, BYTES_LIST, BYTES_LIST, LONG_LIST,
        INT_LIST,
    ],
};

impl Shared {
    pub(crate) async fn link(
        &self,
        operation: &'static str,
        contact: ContactKey,
        ids: &[MessageId],
    ) -> Result<()> {
        let ids = list(ids);
        self.write(operation, |tx| {
            let ids = &ids;
            async move {
                let values: Values<'_> = &[&contact.client(), &contact.id(), ids];
                if tx.last(&LINK, values).await?.is_empty() {
                    let detail = format!("contact {} does not exist", contact.text());
                    return Err(Error::not_found(operation, detail).into());
                }
                Ok(())
            }
        })
        .await
    }

    /// Returns at most `limit` contacts of a client after a place, and the last place.
    pub(crate) async fn page_of_contacts(
        &self,
        operation: &'static str,
        client: ClientId,
        after: Option<Vec<u8>>,
        limit: i64,
    ) -> Result<(Vec<ClientContact>, Option<Vec<u8>>)> {
        let values: Values<'_> = &[&client.as_ref(), &after.unwrap_or_default(), &limit];
        let rows = self.read_many(operation, &PAGE, values).await?;
        let last = rows.last().map(|row| row.get(0));
        let contacts = rows.iter().map(|row| {
            Ok(ClientContact {
                sent_nonce: row.get::<_, i64>(2).cast_unsigned(),
                received_nonce: row.get::<_, i64>(3).cast_unsigned(),
                observed_address: rows::text(row, 4).map_err(unreadable(operation))?,
                timestamp: Some(timestamp_from_epoch_nanos(row.get(1))),
            })
        });
        Ok((contacts.collect::<Result<_>>()?, last))
    }
}

const LINK: Query = Query {
    sql: "\
-- link_messages_to_contact
WITH contact AS (
    SELECT client_id, contact_id FROM contacts WHERE client_id = $1 AND contact_id = $2
), linked AS (
    INSERT INTO contact_messages (client_id, contact_id, message_id)
    SELECT contact.client_id, contact.contact_id, messages.message_id
    FROM contact CROSS JOIN messages
    WHERE messages.message_id = ANY($3)
    AND messages.contact_id IS DISTINCT FROM contact.contact_id
    ON CONFLICT DO NOTHING
)
SELECT 1 FROM contact",
    types: &[BYTES, BYTES, BYTES_LIST],
};

const PAGE: Query = Query {
    sql: "\
-- list_client_contacts
SELECT contact_id, time_nanos, nonce_sent, nonce_received, address FROM contacts
WHERE client_id = $1 AND contact_id > $2
ORDER BY contact_id LIMIT $3",
    types: &[BYTES, BYTES, LONG],
};

#[cfg(test)]
mod tests {
    use fleethold_store::ErrorKind;

    use super::*;

    #[test]
    fn contact_ids_are_hex_of_any_length_up_to_the_whole() {
        let random = Random::seeded(1);
        let key = ContactKey::new(ClientId::new([7; 8]), ordered_id(5, &random));
        let read = ContactKey::parse("x", &key.text()).unwrap();
        assert_eq!(read.0, key.0);
        let short = ContactKey::parse("x", &ContactId::new("1f")).unwrap();
        assert_eq!(short.0[KEY_BYTES - 1], 0x1f);
        for wrong in ["zz", "", "+1", &"0".repeat(49)] {
            let error = ContactKey::parse("x", &ContactId::new(wrong)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{wrong}");
        }
    }

    #[test]
    fn ids_sort_by_time_and_then_by_the_order_of_making() {
        let random = Random::seeded(1);
        let ids = [i64::MIN, -1, 0, 0, 1, i64::MAX].map(|time| ordered_id(time, &random));
        assert!(ids.is_sorted(), "{ids:?}");
    }
}
