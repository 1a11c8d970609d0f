//! Answers that are streamed out of the store.

use std::future::ready;
use std::sync::Arc;

use fleethold_store::{Result, Store};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::status::status;

/// How many items are read ahead of a slow caller.
const READ_AHEAD: usize = 64;

/// Turns a stream that borrows the store into one that owns it.
///
/// Reading is part of the returned stream, not a task of its own: it waits when
/// the caller is slow and ends when the caller goes away.
pub(super) fn owned<T, U>(
    store: Arc<dyn Store>,
    open: impl for<'a> FnOnce(&'a dyn Store) -> BoxStream<'a, Result<T>> + Send + 'static,
    answer: impl Fn(T) -> U + Send + Sync + 'static,
) -> BoxStream<'static, std::result::Result<U, Status>>
where
    T: Send + 'static,
    U: Send + 'static,
{
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let reading = async move {
        let mut items = open(&*store);
        while let Some(item) = items.next().await {
            if sender
                .send(item.map(&answer).map_err(status))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let reading = stream::once(reading).filter_map(|()| ready(None));
    stream::select(ReceiverStream::new(receiver), reading).boxed()
}
