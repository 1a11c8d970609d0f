//! Removing what is old, a few rows in one transaction.
//!
//! Contacts and usage records have ids in the order of their times: the old ones
//! of a client are its first, so a round asks once for each client. Messages have
//! no index by time, which every write would pay for: a round looks at all of
//! them. What is looked at is not locked, only what is removed.

use std::time::SystemTime;

use fleethold_store::clock::{epoch_nanos, timestamp};
use fleethold_store::maintenance::{Cursor, EXPIRED, Lease, Old, Removed};
use fleethold_store::{Error, Result};
use tokio_postgres::Row;

use super::leases;
use crate::Shared;
use crate::contacts::first_id;
use crate::error::Worked;
use crate::incoming::SETTLE;
use crate::query::{BYTES, BYTES_LIST, INT, LONG, Query, Values};
use crate::transactions::Tx;

const OPERATION: &str = "remove_old";

/// The bytes of a message's id, with which the place of a message begins.
const MESSAGE: usize = 32;

/// What one step does.
pub(super) struct Step<'a> {
    pub(super) what: Old,
    pub(super) before: SystemTime,
    /// Empty at the beginning.
    pub(super) after: &'a [u8],
    pub(super) limit: usize,
    pub(super) lease: &'a Lease,
}

/// How the rows of a kind that belong to clients are found and removed.
struct OfClients {
    look: &'static Query,
    remove: &'static Query,
}

impl Step<'_> {
    pub(super) async fn run(&self, shared: &Shared) -> Result<Removed> {
        if matches!(self.what, Old::Messages | Old::Pending)
            && !matches!(self.after.len(), 0 | MESSAGE..)
        {
            return Err(Error::invalid(OPERATION, "the place is none of this store"));
        }
        shared
            .write_many(OPERATION, |tx| async move {
                if !leases::keep(&tx, self.lease).await? {
                    return Err(self.lease.lost(OPERATION).into());
                }
                match self.what {
                    Old::Contacts => self.of_clients(&tx, &CONTACTS).await,
                    Old::Usage => self.of_clients(&tx, &USAGE).await,
                    Old::Messages => self.messages(&tx).await,
                    Old::Pending => self.pending(shared, &tx).await,
                }
            })
            .await
    }

    fn limit(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX)
    }

    /// The place is the client to go on with.
    async fn of_clients(&self, tx: &Tx, kind: &OfClients) -> Worked<Removed> {
        let end = first_id(epoch_nanos(self.before));
        let values: Values<'_> = &[&self.after, &self.limit(), &end.as_slice()];
        let seen = tx.rows(kind.look, values).await?;
        let (mut clients, mut ids) = (Vec::new(), Vec::new());
        for row in &seen {
            if let Some(id) = row.try_get::<_, Option<&[u8]>>(1)? {
                clients.push(row.try_get::<_, &[u8]>(0)?);
                ids.push(id);
            }
        }
        if !ids.is_empty() {
            let values: Values<'_> = &[&clients, &ids];
            tx.last(kind.remove, values).await?;
        }
        let next = match seen.last() {
            Some(last) if seen.len() >= self.limit => {
                let mut client = last.try_get::<_, &[u8]>(0)?.to_vec();
                if last.try_get::<_, Option<&[u8]>>(1)?.is_none() {
                    // The next id: it has nothing old left.
                    client.push(0);
                }
                Some(client.into())
            }
            _ => None,
        };
        Ok(Removed {
            rows: ids.len() as u64,
            next,
        })
    }

    async fn messages(&self, tx: &Tx) -> Worked<Removed> {
        let seen = self.look_at_messages(tx, &LOOK_AT_MESSAGES).await?;
        let old = self.old_messages(&seen)?;
        if !old.ids.is_empty() {
            let values: Values<'_> = &[&old.ids, &old.homes];
            tx.last(&REMOVE_MESSAGES, values).await?;
        }
        Ok(Removed {
            rows: old.ids.len() as u64,
            next: old.next,
        })
    }

    /// Fails messages that have waited too long for their clients.
    async fn pending(&self, shared: &Shared, tx: &Tx) -> Worked<Removed> {
        let seen = self.look_at_messages(tx, &LOOK_AT_PENDING).await?;
        let old = self.old_messages(&seen)?;
        if !old.ids.is_empty() {
            let now = timestamp(shared.clock.now());
            let reason = EXPIRED.as_bytes();
            let expire: Values<'_> = &[&old.ids, &now.seconds, &now.nanos, &reason];
            let settle: Values<'_> = &[&old.ids];
            tx.finish(&[(&EXPIRE, expire), (&SETTLE, settle)]).await?;
        }
        Ok(Removed {
            rows: old.ids.len() as u64,
            next: old.next,
        })
    }

    async fn look_at_messages(&self, tx: &Tx, query: &Query) -> Worked<Vec<Row>> {
        let (message, home) = self.after.split_at(MESSAGE.min(self.after.len()));
        let end = timestamp(self.before);
        let values: Values<'_> = &[&message, &home, &end.seconds, &end.nanos, &self.limit()];
        tx.rows(query, values).await
    }

    fn old_messages<'r>(&self, seen: &'r [Row]) -> Worked<OldMessages<'r>> {
        let mut old = OldMessages::default();
        for row in seen {
            if row.try_get(2)? {
                old.ids.push(row.try_get(0)?);
                old.homes.push(row.try_get(1)?);
            }
        }
        if let Some(last) = seen.last().filter(|_| seen.len() >= self.limit) {
            let place: [&[u8]; 2] = [last.try_get(0)?, last.try_get(1)?];
            old.next = Some(place.concat().into());
        }
        Ok(old)
    }
}

#[derive(Default)]
struct OldMessages<'r> {
    ids: Vec<&'r [u8]>,
    homes: Vec<&'r [u8]>,
    next: Option<Cursor>,
}

const CONTACTS: OfClients = OfClients {
    look: &LOOK_AT_CONTACTS,
    remove: &REMOVE_CONTACTS,
};

// At least one row for each client, without id if it has nothing old.
const LOOK_AT_CONTACTS: Query = Query {
    sql: "\
-- remove_old (contacts)
SELECT looked.client_id, old.contact_id
FROM (
    SELECT client_id FROM clients WHERE client_id >= $1 ORDER BY client_id LIMIT $2
) AS looked
LEFT JOIN LATERAL (
    SELECT contact_id FROM contacts
    WHERE contacts.client_id = looked.client_id AND contact_id < $3
    ORDER BY contact_id LIMIT $2
) AS old ON true
ORDER BY looked.client_id LIMIT $2",
    types: &[BYTES, LONG, BYTES],
};

const REMOVE_CONTACTS: Query = Query {
    sql: "\
-- remove_old (remove contacts)
WITH links AS (
    DELETE FROM contact_messages USING unnest($1::bytea[], $2::bytea[]) AS old (client_id, contact_id)
    WHERE contact_messages.client_id = old.client_id
    AND contact_messages.contact_id = old.contact_id
)
DELETE FROM contacts USING unnest($1::bytea[], $2::bytea[]) AS old (client_id, contact_id)
WHERE contacts.client_id = old.client_id AND contacts.contact_id = old.contact_id",
    types: &[BYTES_LIST, BYTES_LIST],
};

const USAGE: OfClients = OfClients {
    look: &LOOK_AT_USAGE,
    remove: &REMOVE_USAGE,
};

const LOOK_AT_USAGE: Query = Query {
    sql: "\
-- remove_old (usage)
SELECT looked.client_id, old.record_id
FROM (
    SELECT client_id FROM clients WHERE client_id >= $1 ORDER BY client_id LIMIT $2
) AS looked
LEFT JOIN LATERAL (
    SELECT record_id FROM usage_records
    WHERE usage_records.client_id = looked.client_id AND record_id < $3
    ORDER BY record_id LIMIT $2
) AS old ON true
ORDER BY looked.client_id LIMIT $2",
    types: &[BYTES, LONG, BYTES],
};

const REMOVE_USAGE: Query = Query {
    sql: "\
-- remove_old (remove usage)
DELETE FROM usage_records USING unnest($1::bytea[], $2::bytea[]) AS old (client_id, record_id)
WHERE usage_records.client_id = old.client_id AND usage_records.record_id = old.record_id",
    types: &[BYTES_LIST, BYTES_LIST],
};

const LOOK_AT_MESSAGES: Query = Query {
    sql: "\
-- remove_old (messages)
SELECT message_id, client_id, coalesce((processed_seconds, processed_nanos) < ($3, $4), false)
FROM messages WHERE (message_id, client_id) > ($1, $2)
ORDER BY message_id, client_id LIMIT $5",
    types: &[BYTES, BYTES, LONG, INT, LONG],
};

// Links of removed messages lead nowhere, which readers expect; they go with
// their contacts.
const REMOVE_MESSAGES: Query = Query {
    sql: "\
-- remove_old (remove messages)
DELETE FROM messages USING unnest($1::bytea[], $2::bytea[]) AS old (message_id, client_id)
WHERE messages.message_id = old.message_id AND messages.client_id = old.client_id",
    types: &[BYTES_LIST, BYTES_LIST],
};

const LOOK_AT_PENDING: Query = Query {
    sql: "\
-- remove_old (pending)
SELECT
    looked.message_id, looked.client_id,
    coalesce((creation_seconds, creation_nanos) < ($3, $4), false)
FROM (
    SELECT message_id, client_id FROM client_pending WHERE (message_id, client_id) > ($1, $2)
    ORDER BY message_id, client_id LIMIT $5
) AS looked
LEFT JOIN LATERAL (
    SELECT creation_seconds, creation_nanos FROM messages
    WHERE messages.message_id = looked.message_id AND messages.client_id = looked.client_id
    LIMIT 1
) AS messages ON true
ORDER BY looked.message_id, looked.client_id",
    types: &[BYTES, BYTES, LONG, INT, LONG],
};

const EXPIRE: Query = Query {
    sql: "\
-- remove_old (expire)
UPDATE messages SET processed_seconds = $2, processed_nanos = $3, failure = $4
WHERE message_id = ANY($1) AND processed_seconds IS NULL",
    types: &[BYTES_LIST, LONG, INT, BYTES],
};
