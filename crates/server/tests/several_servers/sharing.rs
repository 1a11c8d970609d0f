//! What servers on one store do together.

use std::collections::BTreeMap;

use agent::Fleet;
use fleethold_proto::fleetspeak::grpcservice::processor_server::{Processor, ProcessorServer};
use fleethold_proto::fleetspeak::server::{Broadcast, CreateBroadcastRequest, ServiceConfig};
use fleethold_proto::fleetspeak::{EmptyMessage, grpcservice};
use fleethold_proto::pack;
use fleethold_store::BroadcastId;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Status};

use super::*;

#[tokio::test]
async fn stream_finds_messages_of_which_nobody_told_it() {
    let fleet = Installation::new();
    let server = fleet
        .server(&[Part::Agents], |config| {
            config.stream_look = Duration::from_millis(50);
        })
        .await;
    let (agent, mut stream) = fleet.stream(&server).await;
    for number in 0..3 {
        let message = fleet.message(Some(agent.id), "hello", number);
        fleet.store.store_messages(&[message], None).await.unwrap();
        assert_eq!(next_types(&mut stream).await, [number.to_string()]);
    }
    server.stop().await;
}

#[tokio::test]
async fn servers_without_listener_do_not_all_have_the_same_name() {
    let fleet = Installation::new();
    let server = fleet.server(&[Part::Agents], |_| {}).await;
    let (agent, _stream) = fleet.stream(&server).await;
    let clients = admin_less_list(&fleet, agent.id).await;
    assert!(clients.starts_with("local "), "{clients}");
    assert!(clients.ends_with(&std::process::id().to_string()));
    server.stop().await;
}

async fn admin_less_list(fleet: &Installation, client: ClientId) -> String {
    use fleethold_store::ClientStore;
    let clients = fleet.store.list_clients(&[client]).await.unwrap();
    clients[0].last_contact_streaming_to.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcasts_reach_agents_of_all_servers_once_and_their_limit_is_exact() {
    const AGENTS: usize = 40;
    let fleet = Installation::new();
    let parts = [Part::Agents, Part::Admin];
    let servers = [
        fleet.server(&parts, |_| {}).await,
        fleet.server(&parts, |_| {}).await,
    ];
    let mut agents = Vec::new();
    for server in &servers {
        let addr = server.agents_addr().unwrap();
        agents.push(Fleet::open(addr, &fleet.authority, AGENTS).await);
    }
    let received = |kind: &str| {
        let arrivals = agents.iter().map(|fleet| fleet.arrivals(kind));
        arrivals.collect::<Vec<_>>()
    };
    for (number, limit) in [(1_u8, 55), (2, fleethold_store::BROADCAST_UNLIMITED)] {
        let broadcast = Broadcast {
            broadcast_id: BroadcastId::new([number; 8]).to_bytes(),
            source: Some(Address {
                service_name: "hello".to_owned(),
                ..Address::default()
            }),
            message_type: number.to_string(),
            ..Broadcast::default()
        };
        let request = CreateBroadcastRequest {
            broadcast: Some(broadcast),
            limit,
        };
        let mut admin = admin(&servers[usize::from(number) - 1]).await;
        admin.create_broadcast(request).await.unwrap();
    }
    let all_have = async {
        for fleet in &agents {
            fleet.wait_for("2", AGENTS).await;
        }
        while received("1").iter().map(Vec::len).sum::<usize>() < 55 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("broadcasts", Box::pin(all_have)).await;
    for (kind, expected) in [("1", 55), ("2", 2 * AGENTS)] {
        let mut receivers = BTreeMap::<_, usize>::new();
        for (server, arrivals) in received(kind).into_iter().enumerate() {
            for (agent, _) in arrivals {
                *receivers.entry((server, agent)).or_default() += 1;
            }
        }
        assert_eq!(receivers.len(), expected, "{kind}");
        assert!(receivers.values().all(|times| *times == 1), "{receivers:?}");
    }
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn old_server_leaves_a_shared_port_and_everybody_is_served_by_it_or_by_the_new_one() {
    const AGENTS: usize = 40;
    let fleet = Installation::new();
    let old = fleet
        .server(&[Part::Agents], |config| config.reuse_port = true)
        .await;
    let port = old.agents_addr().unwrap();
    let new = fleet
        .server(&[Part::Agents], |config| {
            config.reuse_port = true;
            config.agents.as_mut().unwrap().listen = port.to_string();
        })
        .await;
    assert_eq!(new.agents_addr(), Some(port));
    let agents: Vec<_> = (0..AGENTS)
        .map(|_| Agent::new(port, &fleet.authority))
        .collect();
    // The system gives some to the one and some to the other.
    let mut connections = Vec::new();
    for agent in &agents {
        connections.push(agent.connect(http::Version::HTTP_11).await);
    }
    let contact = fleethold_proto::fleetspeak::ContactData::default();
    let polls = async {
        for (agent, connection) in agents.iter().zip(&mut connections) {
            let poll = agent::post("/message", agent.wrap(&contact));
            let answer = connection.send(poll).await.expect("an answer");
            assert_eq!(answer.status(), StatusCode::OK);
        }
    };
    let served = "fleetspeak_server_client_polls_total";
    soon("polls", Box::pin(polls)).await;
    let by_old = metric(&old, served, "POLL").await;
    assert!(by_old > 0.0, "the old one has a part of the connections");
    assert!(metric(&new, served, "POLL").await > 0.0, "and the new one");
    old.stop().await;
    // Who connects now, finds the new one.
    for agent in &agents {
        agent.poll(&contact).await;
    }
    let expected = 2.0 * AGENTS as f64 - by_old;
    assert_eq!(metric(&new, served, "POLL").await, expected);
    new.stop().await;
}

/// Hands on the ids of what it gets.
struct BackEnd(mpsc::UnboundedSender<Bytes>);

#[tonic::async_trait]
impl Processor for BackEnd {
    async fn process(
        &self,
        request: tonic::Request<Message>,
    ) -> Result<Response<EmptyMessage>, Status> {
        self.0.send(request.into_inner().message_id).unwrap();
        Ok(Response::new(EmptyMessage {}))
    }
}

#[tokio::test]
async fn backlog_is_shared_and_every_message_processed_once() {
    const MESSAGES: usize = 1_000;
    let fleet = Installation::new();
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let target = listener.local_addr().unwrap();
    let (received, mut messages) = mpsc::unbounded_channel();
    let back_end = tonic::transport::Server::builder()
        .add_service(ProcessorServer::new(BackEnd(received)))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(back_end);
    let backlog: Vec<_> = (0..MESSAGES)
        .map(|number| fleet.message(None, "GRR", u32::try_from(number).unwrap()))
        .collect();
    fleet.store.store_messages(&backlog, None).await.unwrap();
    let service = |config: &mut Config| {
        config.services = vec![ServiceConfig {
            name: "GRR".to_owned(),
            factory: "GRPC".to_owned(),
            config: Some(pack(&grpcservice::Config {
                target: target.to_string(),
                insecure: true,
                ..grpcservice::Config::default()
            })),
            ..ServiceConfig::default()
        }];
    };
    let servers = [
        fleet.server(&[Part::Admin], service).await,
        fleet.server(&[Part::Admin], service).await,
    ];
    // They are due from now on.
    fleet.clock.advance(Duration::from_secs(130));
    let mut times = BTreeMap::<_, usize>::new();
    for _ in 0..MESSAGES {
        let id = soon("the backlog", messages.recv()).await.unwrap();
        *times.entry(id).or_default() += 1;
    }
    assert_eq!(times.len(), MESSAGES);
    let ids: Vec<_> = backlog
        .iter()
        .map(|message| MessageId::try_from(&message.message_id[..]).unwrap())
        .collect();
    let all_done = async {
        loop {
            let stored = fleet.store.get_messages(&ids, false).await.unwrap();
            if stored.iter().all(|message| message.result.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("all results", Box::pin(all_done)).await;
    for server in &servers {
        let ingested = metric(server, "fleetspeak_messages_ingested_total", "GRR").await;
        assert!(ingested > 0.0, "it left all to the other server");
    }
    for server in servers {
        server.stop().await;
    }
    assert!(messages.try_recv().is_err(), "one was processed twice");
}
