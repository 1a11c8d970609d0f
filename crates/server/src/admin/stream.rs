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

#[cfg(test)]
mod tests {
    use fleethold_store::{
        ClientData, ClientId, ClientStore, ManualClock, MemoryStore, Random, Store,
    };
    use tonic::Code;

    use super::*;

    async fn store_with_clients(count: u64) -> Arc<MemoryStore> {
        let clock = Arc::new(ManualClock::at(1_000));
        let store = Arc::new(MemoryStore::new(clock, Arc::new(Random::seeded(1))));
        for number in 0..count {
            let client = ClientId::new(number.to_be_bytes());
            store
                .add_client(client, &ClientData::default())
                .await
                .unwrap();
        }
        store
    }

    fn ids(store: &Arc<MemoryStore>) -> BoxStream<'static, std::result::Result<ClientId, Status>> {
        let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(store);
        owned(store, |store| store.stream_client_ids(true, None), |id| id)
    }

    #[tokio::test]
    async fn items_come_in_order_and_the_store_is_free_after_the_last() {
        let store = store_with_clients(1_000).await;
        let found: Vec<_> = ids(&store).map(Result::unwrap).collect().await;
        let expected = (0..1_000_u64).map(|number| ClientId::new(number.to_be_bytes()));
        assert!(found.into_iter().eq(expected));
        assert_eq!(Arc::strong_count(&store), 1);
    }

    #[tokio::test]
    async fn caller_that_goes_away_ends_the_reading() {
        let store = store_with_clients(1_000).await;
        let mut ids = ids(&store);
        ids.next().await.unwrap().unwrap();
        assert_eq!(Arc::strong_count(&store), 2);
        drop(ids);
        assert_eq!(Arc::strong_count(&store), 1);
    }

    #[tokio::test]
    async fn error_of_the_store_ends_the_answer_with_its_code() {
        let store = store_with_clients(1).await;
        store.close().await.unwrap();
        let found: Vec<_> = ids(&store).collect().await;
        let [Err(status)] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(status.code(), Code::Unavailable);
    }
}
