//! Removing what is old, a few rows in one transaction.
//!
//! Contacts have numbers in the order they came, which is about the order of
//! their times: a step that removes nothing and has met one that is too young
//! ends the round. Other tables have no index by time, which every write of
//! every server would pay for: a round looks at all their rows. What is looked
//! at is not locked, only what is removed.

use std::time::SystemTime;

use fleethold_store::clock::{epoch_nanos, timestamp};
use fleethold_store::maintenance::{Cursor, EXPIRED, Lease, Old, Removed};
use fleethold_store::record::ResultRecord;
use fleethold_store::{ClientId, Error, MessageId};
use mysql_async::Row;

use super::leases;
use crate::error::Worked;
use crate::messages::fail_pending;
use crate::rows::{take, take_id};
use crate::sql::{Batch, List, MOST_ROWS, Value};
use crate::transaction::Tx;

pub(super) const OPERATION: &str = "remove_old";

/// What one step does.
pub(super) struct Step {
    pub(super) what: Old,
    pub(super) before: SystemTime,
    /// Empty at the beginning.
    pub(super) after: Cursor,
    pub(super) limit: usize,
    pub(super) lease: Lease,
}

impl Step {
    pub(super) async fn run(&self, tx: &mut Tx) -> Worked<Removed> {
        if !leases::keep(tx, &self.lease).await? {
            return Err(self.lease.lost(OPERATION).into());
        }
        match self.what {
            Old::Contacts => self.contacts(tx).await,
            Old::Usage => self.usage(tx).await,
            Old::Messages => self.messages(tx).await,
            Old::Pending => self.pending(tx).await,
        }
    }

    fn limit(&self) -> Value<'static> {
        Value::Unsigned(u64::try_from(self.limit).unwrap_or(u64::MAX))
    }

    /// Returns the time before which rows are old, as upstream stores it in two columns.
    fn end(&self) -> [Value<'static>; 3] {
        let end = timestamp(self.before);
        let seconds = Value::Int(end.seconds);
        [seconds, seconds, Value::Int(end.nanos.into())]
    }

    async fn look(&self, tx: &mut Tx, sql: &'static str, values: &[Value<'_>]) -> Worked<Vec<Row>> {
        let replies = tx.run(Batch::of(sql, values)).await?;
        Ok(replies.into_iter().flat_map(|reply| reply.rows).collect())
    }

    async fn contacts(&self, tx: &mut Tx) -> Worked<Removed> {
        let after = match self.after[..] {
            [] => 0,
            ref place => u64::from_be_bytes(place.try_into().map_err(|_| foreign())?),
        };
        let nanos = Value::Int(epoch_nanos(self.before));
        let values = [nanos, Value::Unsigned(after), self.limit()];
        let seen = self.look(tx, LOOK_AT_CONTACTS, &values).await?;
        let (is_full, mut last) = (seen.len() >= self.limit, after);
        let mut old = Vec::new();
        for mut row in seen {
            last = take(&mut row, 0)?;
            if take::<Option<bool>>(&mut row, 1)?.unwrap_or_default() {
                old.push(last);
            }
        }
        let young = is_full && old.is_empty();
        let mut batch = Batch::default();
        for slice in old.chunks(MOST_ROWS) {
            let numbers = slice.iter().map(|number| [Value::Unsigned(*number)]);
            let numbers = List::rows("?", ", ", numbers);
            for sql in [REMOVE_LINKS_OF_CONTACTS, REMOVE_CONTACTS] {
                batch.add(sql, &[Value::List(&numbers)]);
            }
        }
        tx.commit(batch).await?;
        Ok(Removed {
            rows: old.len() as u64,
            next: (is_full && !young).then(|| Cursor::copy_from_slice(&last.to_be_bytes())),
        })
    }

    /// Clients come one after the other; the place is the last one that is done.
    async fn usage(&self, tx: &mut Tx) -> Worked<Removed> {
        let most = self.limit.max(1) as u64;
        let after = Value::Bytes(&self.after);
        let values = [after, Value::Unsigned(most - 1)];
        let last = self.look(tx, LAST_CLIENT_WITH_USAGE, &values).await?;
        let mut last = last.into_iter();
        let last: Option<ClientId> = last
            .next()
            .map(|mut row| take_id(&mut row, 0))
            .transpose()?;
        let up_to = last.map_or([0xff; 8], |last| *last.as_bytes());
        let values = [
            after,
            Value::Bytes(&up_to),
            Value::Int(epoch_nanos(self.before)),
            Value::Unsigned(most),
        ];
        let replies = tx.commit(Batch::of(REMOVE_USAGE, &values)).await?;
        let rows = replies.iter().map(|reply| reply.affected).sum();
        Ok(Removed {
            rows,
            next: if rows >= most {
                Some(self.after.clone())
            } else {
                last.map(ClientId::to_bytes)
            },
        })
    }

    async fn messages(&self, tx: &mut Tx) -> Worked<Removed> {
        let [seconds, same, nanos] = self.end();
        let values = [
            seconds,
            same,
            nanos,
            Value::Bytes(&self.after),
            self.limit(),
        ];
        let seen = self.look(tx, LOOK_AT_MESSAGES, &values).await?;
        let (old, next) = self.old_messages(seen)?;
        let mut batch = Batch::default();
        for slice in old.chunks(MOST_ROWS) {
            let ids = List::ids(slice);
            // Old databases have no foreign keys that would remove the first ones.
            for sql in [REMOVE_LINKS_OF_MESSAGES, REMOVE_PENDING, REMOVE_MESSAGES] {
                batch.add(sql, &[Value::List(&ids)]);
            }
        }
        tx.commit(batch).await?;
        Ok(Removed {
            rows: old.len() as u64,
            next,
        })
    }

    /// Fails messages that have waited too long for their clients.
    async fn pending(&self, tx: &mut Tx) -> Worked<Removed> {
        let [seconds, same, nanos] = self.end();
        let values = [
            seconds,
            same,
            nanos,
            Value::Bytes(&self.after),
            self.limit(),
        ];
        let seen = self.look(tx, LOOK_AT_PENDING, &values).await?;
        let (old, next) = self.old_messages(seen)?;
        let expired = ResultRecord {
            processed_time: timestamp(tx.context.clock.now()),
            failure: Some(EXPIRED.to_owned()),
        };
        let mut batch = Batch::default();
        fail_pending(&mut batch, &old, &expired);
        tx.commit(batch).await?;
        Ok(Removed {
            rows: old.len() as u64,
            next,
        })
    }

    /// Returns which of the messages are old, and where to go on.
    fn old_messages(&self, seen: Vec<Row>) -> Worked<(Vec<MessageId>, Option<Cursor>)> {
        let is_full = seen.len() >= self.limit;
        let (mut old, mut last) = (Vec::new(), None);
        for mut row in seen {
            let id: MessageId = take_id(&mut row, 0)?;
            if take::<Option<bool>>(&mut row, 1)?.unwrap_or_default() {
                old.push(id);
            }
            last = Some(id);
        }
        Ok((old, last.filter(|_| is_full).map(MessageId::to_bytes)))
    }
}

fn foreign() -> Error {
    Error::invalid(OPERATION, "the place is none of this store")
}

// The newest row stays: some servers would use its number again.
const LOOK_AT_CONTACTS: &str = "\
-- remove_old (contacts)
SELECT
    client_contact_id,
    time < ? AND client_contact_id < (SELECT MAX(newest.client_contact_id) FROM client_contacts AS newest)
FROM client_contacts WHERE client_contact_id > ? ORDER BY client_contact_id LIMIT ?";

const REMOVE_LINKS_OF_CONTACTS: &str = "\
-- remove_old (links of contacts)
DELETE FROM client_contact_messages WHERE client_contact_id IN (?)";

const REMOVE_CONTACTS: &str = "\
-- remove_old (remove contacts)
DELETE FROM client_contacts WHERE client_contact_id IN (?)";

const LAST_CLIENT_WITH_USAGE: &str = "\
-- remove_old (last client with usage)
SELECT client_id FROM client_resource_usage_records WHERE client_id > ?
ORDER BY client_id LIMIT 1 OFFSET ?";

const REMOVE_USAGE: &str = "\
-- remove_old (usage)
DELETE FROM client_resource_usage_records
WHERE client_id > ? AND client_id <= ? AND server_timestamp < ? LIMIT ?";

const LOOK_AT_MESSAGES: &str = "\
-- remove_old (messages)
SELECT
    message_id,
    processed_time_seconds < ? OR (processed_time_seconds = ? AND processed_time_nanos < ?)
FROM messages WHERE message_id > ? ORDER BY message_id LIMIT ?";

const REMOVE_LINKS_OF_MESSAGES: &str = "\
-- remove_old (links of messages)
DELETE FROM client_contact_messages WHERE message_id IN (?)";

const REMOVE_PENDING: &str = "\
-- remove_old (pending)
DELETE FROM pending_messages WHERE for_server IN (0, 1) AND message_id IN (?)";

const REMOVE_MESSAGES: &str = "\
-- remove_old (remove messages)
DELETE FROM messages WHERE message_id IN (?)";

const LOOK_AT_PENDING: &str = "\
-- remove_old (look at pending)
SELECT
    pending_messages.message_id,
    creation_time_seconds < ? OR (creation_time_seconds = ? AND creation_time_nanos < ?)
FROM pending_messages
STRAIGHT_JOIN messages ON messages.message_id = pending_messages.message_id
WHERE for_server = 0 AND pending_messages.message_id > ?
ORDER BY pending_messages.message_id LIMIT ?";
