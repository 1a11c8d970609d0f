//! A database, and servers of both kinds that agents cannot tell apart.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use fleethold_proto::fleetspeak::components::{AdminConfig, Config, HttpsConfig};
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{ServerConfig, ServiceConfig};
use fleethold_proto::fleetspeak::{Address, Message, grpcservice};
use fleethold_proto::{Any, Duration, pack, text};
use fleethold_store::{ClientId, MessageId, Random};
use prost::Message as _;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::agent::Authority;
use crate::database::{Database, database};
use crate::harness::stock_server::StockServer;
use crate::harness::{Agent, AgentOptions, ECHO, Server, ServerSideService, free_address};

/// A service of both servers that nobody runs.
pub(crate) const ABSENT: &str = "absent";

/// A service of both servers that takes everything.
pub(crate) const NOOP: &str = "noop";

/// What both servers have in common.
pub(crate) struct Bed {
    pub(crate) database: Database,
    pub(crate) authority: Authority,
    dir: TempDir,
}

/// Where a server is, whether it runs or not, and the service behind it.
pub(crate) struct Place {
    dir: PathBuf,
    components: PathBuf,
    services: PathBuf,
    /// Where agents connect, by the name in the certificate.
    listen: String,
    pub(crate) admin: String,
    service_address: String,
}

impl Bed {
    pub(crate) fn make(name: &str) -> Self {
        let bed = Self {
            database: database(name),
            authority: Authority::new(),
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        let ca = pem::Pem::new("CERTIFICATE", bed.authority.root().to_vec());
        fs::write(bed.ca(), pem::encode(&ca)).expect("a certificate file");
        bed
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes the files of a server, which are the same for both kinds.
    pub(crate) fn place(&self, name: &str) -> Place {
        self.place_with(name, NOOP)
    }

    /// As [`place`](Self::place); a service of this name takes everything.
    pub(crate) fn place_with(&self, name: &str, noop: &str) -> Place {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).expect("a directory for a server");
        fs::copy(self.ca(), dir.join("ca.pem")).expect("a copy of the certificate");
        let port = |address: &str| address.rsplit_once(':').expect("a port").1.to_owned();
        let place = Place {
            components: dir.join("components.config"),
            services: dir.join("services.config"),
            dir,
            listen: format!("localhost:{}", port(&free_address())),
            admin: free_address(),
            service_address: free_address(),
        };
        let notifications = free_address();
        let components = Config {
            mysql_data_source_name: self.database.dsn.clone(),
            https_config: Some(HttpsConfig {
                listen_address: place.listen.clone(),
                certificates: self.authority.certificates_pem.clone(),
                key: self.authority.key_pem.clone(),
                ..HttpsConfig::default()
            }),
            admin_config: Some(AdminConfig {
                listen_address: place.admin.clone(),
            }),
            notification_listen_address: notifications.clone(),
            notification_public_address: notifications,
            ..Config::default()
        };
        let grpc = |name: &str, target: &str| ServiceConfig {
            name: name.to_owned(),
            factory: "GRPC".to_owned(),
            config: Some(pack(&grpcservice::Config {
                target: target.to_owned(),
                insecure: true,
                ..grpcservice::Config::default()
            })),
            ..ServiceConfig::default()
        };
        let mut all = vec![
            grpc(ECHO, &place.service_address),
            ServiceConfig {
                name: noop.to_owned(),
                factory: "NOOP".to_owned(),
                ..ServiceConfig::default()
            },
        ];
        if noop != ABSENT {
            all.push(grpc(ABSENT, &free_address()));
        }
        let services = ServerConfig {
            services: all,
            broadcast_poll_time: Some(Duration {
                seconds: 1,
                nanos: 0,
            }),
        };
        fs::write(&place.components, text::print(&components)).expect("a components file");
        fs::write(&place.services, text::print(&services)).expect("a services file");
        place
    }

    /// A directory for files of the case.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Asserts that rows do not contradict each other, whoever wrote them.
    pub(crate) fn assert_sound(&self) {
        let found = fleethold(["store", "check", "--store", &self.database.url, "--json"]);
        assert_eq!(found.trim(), "[]", "{found}");
    }

    /// Starts a stock agent that tries these servers in turn.
    pub(crate) fn start_agent(
        &self,
        name: &str,
        places: &[&Place],
        options: AgentOptions,
    ) -> Agent {
        let servers: Vec<_> = places.iter().map(|place| place.listen.as_str()).collect();
        let dir = self.dir.path().join(name);
        Agent::start_at(&dir, &self.ca(), &servers, name, options)
    }
}

impl Place {
    /// Where simulated agents connect.
    pub(crate) fn agents(&self) -> SocketAddr {
        let port = self.listen.rsplit_once(':').expect("a port").1;
        SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().expect("a number")))
    }

    /// Starts the echo service behind the server.
    pub(crate) fn start_service(&self) -> ServerSideService {
        ServerSideService::start(&self.dir, &self.service_address, &self.admin)
    }

    pub(crate) fn start_stock(&self) -> StockServer {
        let addresses = [&self.listen[..], &self.admin];
        StockServer::start(&self.dir, &self.components, &self.services, &addresses)
    }

    /// Starts this program as its users do in place of, or beside, a stock server.
    pub(crate) fn start_own(&self, more: &[&str]) -> Server {
        let arguments = self.arguments(more);
        Server::start_with(
            &self.dir,
            arguments,
            self.listen.clone(),
            self.admin.clone(),
        )
    }

    /// The arguments of `serve`.
    pub(crate) fn arguments(&self, more: &[&str]) -> Vec<String> {
        let path = |path: &Path| path.to_str().expect("a plain name").to_owned();
        let files = [
            ["--components-config".to_owned(), path(&self.components)],
            ["--services-config".to_owned(), path(&self.services)],
        ];
        let more = more.iter().map(|argument| (*argument).to_owned());
        files.into_iter().flatten().chain(more).collect()
    }

    /// Sends `text` to the echo service of a client, without a service of ours.
    #[tokio::main(flavor = "current_thread")]
    pub(crate) async fn send(&self, client: &str, text: &str) {
        let client: ClientId = client.parse().expect("a client's id");
        let address = |client: Bytes| Address {
            client_id: client,
            service_name: ECHO.to_owned(),
        };
        let message = Message {
            message_id: MessageId::random(&Random::from_os()).to_bytes(),
            source: Some(address(Bytes::new())),
            destination: Some(address(client.to_bytes())),
            message_type: "Text".to_owned(),
            data: Some(Any {
                type_url: "type.googleapis.com/google.protobuf.StringValue".to_owned(),
                value: text.to_owned().encode_to_vec().into(),
            }),
            ..Message::default()
        };
        let inserted = self.admin().await.insert_message(message).await;
        inserted.expect("the server takes the message");
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::connect(format!("http://{}", self.admin))
            .await
            .expect("the admin interface is there")
    }
}

/// Runs this program to its end and returns what it printed, whatever its status.
pub(crate) fn fleethold<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleethold"));
    let output = command.args(arguments).output().expect("the program runs");
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

/// Runs what is asynchronous to its end.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn block_on<F: Future>(future: F) -> F::Output {
    future.await
}
