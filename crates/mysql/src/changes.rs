//! Changes that answer nothing, those of many callers in one transaction.
//!
//! All of them can run twice. As with [contacts](crate::grouped), a group makes
//! all its changes or is given up, and each caller makes its own.

use std::sync::Arc;

use fleethold_store::gather::Job;
use fleethold_store::record::ResultRecord;
use fleethold_store::{MessageId, Result};
use futures::FutureExt;

use crate::contacts;
use crate::error::{Verdict, Worked};
use crate::grouped::shared_error;
use crate::incoming::New;
use crate::messages::set_results;
use crate::sql::{Batch, Value};
use crate::transaction::{Shared, Tx, ended_badly};

/// What one caller changes.
#[derive(Debug)]
pub(crate) enum Change {
    /// Messages are stored, and linked to a contact.
    Store { new: New, contact: Option<i64> },
    /// Messages get results, each one.
    Finish(Vec<(MessageId, ResultRecord)>),
    /// Messages, in order, are linked to a contact.
    Link { contact: i64, ids: Vec<MessageId> },
}

/// A change on its way into the database.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    operation: &'static str,
    change: Arc<Change>,
}

/// What became of a change in a group.
#[derive(Debug)]
pub(crate) enum Changed {
    /// False if the contact to link to does not exist.
    Done(Result<bool>),
    /// Its caller must make it; perhaps the group has done it already.
    Alone { replayed: bool },
}

/// What became of a group.
enum Group {
    Changed(Vec<bool>),
    GivenUp { replayed: bool },
}

impl Change {
    fn ids(&self) -> Vec<MessageId> {
        match self {
            Self::Store { new, .. } => new.ids(),
            Self::Finish(results) => results.iter().map(|(id, _)| *id).collect(),
            Self::Link { ids, .. } => ids.clone(),
        }
    }

    /// Adds its statements; returns at which of them the contact is asked for
    /// that has to exist.
    fn add(&self, batch: &mut Batch) -> Option<usize> {
        match self {
            Self::Store { new, contact } => {
                new.store(batch);
                if let Some(contact) = contact {
                    contacts::link(batch, *contact, &new.ids());
                }
                None
            }
            Self::Finish(results) => {
                set_results(batch, results);
                None
            }
            Self::Link { contact, ids } => {
                let asked = batch.len();
                batch.add(contacts::CONTACT_EXISTS, &[Value::Int(*contact)]);
                contacts::link(batch, *contact, ids);
                Some(asked)
            }
        }
    }
}

impl Job for Asked {
    type Key = MessageId;

    fn keys(&self) -> impl Iterator<Item = MessageId> {
        self.change.ids().into_iter()
    }

    fn weight(&self) -> usize {
        const ID_BYTES: usize = 200;
        ID_BYTES
            + match &*self.change {
                Change::Store { new, .. } => new.statement_bytes(),
                Change::Finish(results) => {
                    let reason = |result: &ResultRecord| {
                        result.failure.as_ref().map_or(0, |reason| 2 * reason.len())
                    };
                    let each = results.iter().map(|(_, result)| ID_BYTES + reason(result));
                    each.sum()
                }
                Change::Link { ids, .. } => ID_BYTES * ids.len(),
            }
    }
}

impl Shared {
    /// Makes a change, perhaps together with others; false if the contact to
    /// link to does not exist.
    pub(crate) async fn change(
        self: &Arc<Self>,
        operation: &'static str,
        change: Change,
    ) -> Result<bool> {
        self.check_open(operation)?;
        self.settle().await;
        let asked = Asked {
            operation,
            change: Arc::new(change),
        };
        // There each statement is a round trip, and the others' would wait for them.
        if self.context.facts.is_cluster {
            return self.change_alone(asked, false).await;
        }
        let shared = Arc::clone(self);
        let changed = self.changes.run(asked.clone(), move |changes| {
            let shared = Arc::clone(&shared);
            async move { shared.change_all(changes).await }
        });
        match changed.await {
            Some(Changed::Done(done)) => done,
            Some(Changed::Alone { replayed }) => self.change_alone(asked, replayed).await,
            None => Err(ended_badly(operation)),
        }
    }

    async fn change_all(&self, mut changes: Vec<Asked>) -> Vec<Changed> {
        if changes.len() == 1
            && let Some(asked) = changes.pop()
        {
            return vec![Changed::Done(self.change_alone(asked, false).await)];
        }
        let group = self.write_settled("change", false, changes.clone(), |changes, tx| {
            async move { change_group(tx, changes).await }.boxed()
        });
        match group.await {
            Ok(Group::Changed(all)) => {
                let done = |exists| Changed::Done(Ok(exists));
                all.into_iter().map(done).collect()
            }
            Ok(Group::GivenUp { replayed }) => {
                let alone = |_| Changed::Alone { replayed };
                changes.iter().map(alone).collect()
            }
            Err(error) => {
                let error = Arc::new(error);
                let failed = |asked: &Asked| shared_error(asked.operation, &error);
                let failed = changes
                    .iter()
                    .map(|asked| Changed::Done(Err(failed(asked))));
                failed.collect()
            }
        }
    }

    async fn change_alone(&self, asked: Asked, replayed: bool) -> Result<bool> {
        self.write_settled(asked.operation, replayed, asked, |asked, tx| {
            async move {
                let all = change_together(tx, std::slice::from_ref(asked)).await?;
                Ok(all.into_iter().all(|exists| exists))
            }
            .boxed()
        })
        .await
    }
}

async fn change_group(tx: &mut Tx, changes: &[Asked]) -> Worked<Group> {
    match change_together(tx, changes).await {
        Ok(all) => Ok(Group::Changed(all)),
        // What one of them waits for, or is refused for, is not the others' matter.
        Err(failure) if matches!(failure.verdict(), Verdict::Conflict | Verdict::Final(..)) => {
            let changes = changes.len();
            tracing::debug!(changes, ?failure, "each caller makes its own change");
            Ok(Group::GivenUp {
                replayed: tx.replayed(),
            })
        }
        Err(failure) => Err(failure),
    }
}

/// Returns for each change whether its contact exists if it has to.
async fn change_together(tx: &mut Tx, changes: &[Asked]) -> Worked<Vec<bool>> {
    let mut batch = Batch::default();
    let asked: Vec<_> = changes
        .iter()
        .map(|asked| asked.change.add(&mut batch))
        .collect();
    let replies = tx.commit(batch).await?;
    let exists = |at: usize| replies.get(at).is_some_and(|reply| !reply.rows.is_empty());
    Ok(asked
        .into_iter()
        .map(|asked| asked.is_none_or(exists))
        .collect())
}
