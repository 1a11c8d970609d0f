//! What a call sets off in the rest of the server.

use bytes::Bytes;
use fleethold_proto::fleetspeak::Address;
use fleethold_store::{
    ClientData, ClientId, ClientStore, Clock, ManualClock, MemoryStore, Random, Store,
};
use futures::FutureExt;
use tokio::sync::oneshot;

use super::*;
use crate::config::Config;

const CLIENT: ClientId = ClientId::new([1; 8]);
const OTHER: ClientId = ClientId::new([2; 8]);

/// Returns an admin interface without listener, with two known clients.
async fn methods() -> Methods {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(1_000));
    let random = Arc::new(Random::seeded(1));
    let memory = Arc::new(MemoryStore::new(Arc::clone(&clock), Arc::clone(&random)));
    for client in [CLIENT, OTHER] {
        let data = ClientData::default();
        memory.add_client(client, &data).await.unwrap();
    }
    let store: Arc<dyn Store> = memory;
    let engine = Engine::new(&Config::default(), store, clock, random).unwrap();
    Methods {
        admin: Arc::new(Admin {
            engine: Arc::new(engine),
        }),
        changes: TaskTracker::new(),
    }
}

fn message(client: ClientId) -> Message {
    let address = |client_id| {
        Some(Address {
            client_id,
            service_name: "shell".to_owned(),
        })
    };
    Message {
        source: address(Bytes::new()),
        destination: address(client.to_bytes()),
        ..Message::default()
    }
}

#[tokio::test]
async fn inserted_message_wakes_the_stream_of_its_client_only() {
    let admin = methods().await.admin;
    let stream = admin.engine.streams.register(CLIENT);
    let other = admin.engine.streams.register(OTHER);
    admin.insert_message(message(CLIENT)).await.unwrap();
    assert!(stream.woken().now_or_never().is_some());
    assert!(other.woken().now_or_never().is_none());
}

#[tokio::test]
async fn blacklisted_client_is_read_again_and_its_stream_woken() {
    let admin = methods().await.admin;
    let stream = admin.engine.streams.register(CLIENT);
    let cached = admin.engine.cache.load(CLIENT).await.unwrap().unwrap();
    assert!(!cached.data.blacklisted);
    admin.blacklist_client(CLIENT.as_bytes()).await.unwrap();
    let cached = admin.engine.cache.load(CLIENT).await.unwrap().unwrap();
    assert!(cached.data.blacklisted);
    assert!(stream.woken().now_or_never().is_some());
}

#[tokio::test]
async fn change_is_finished_though_its_caller_hangs_up() {
    let methods = methods().await;
    let (go_on, waiting) = oneshot::channel();
    let (finished, done) = oneshot::channel();
    let call = methods.change(Call::new("Example", &Request::new(())), |_| async move {
        waiting.await.unwrap();
        finished.send(()).unwrap();
        Ok(())
    });
    assert!(call.now_or_never().is_none(), "the call has not ended");
    go_on.send(()).unwrap();
    done.await.unwrap();
}

#[tokio::test]
async fn change_that_panics_is_an_error_of_its_call_only() {
    let methods = methods().await;
    let answer = methods.change(Call::new("Example", &Request::new(())), |_| async {
        panic!("as expected")
    });
    assert_eq!(answer.await.unwrap_err().code(), tonic::Code::Internal);
}
