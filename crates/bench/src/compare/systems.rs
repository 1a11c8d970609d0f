//! The servers that are compared, each with a database and certificates of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fleethold_proto::fleethold::service::v1::BatchConfig;
use fleethold_proto::fleetspeak::components::{AdminConfig, Config, HttpsConfig};
use fleethold_proto::fleetspeak::grpcservice;
use fleethold_proto::fleetspeak::server::{ServerConfig, ServiceConfig};
use fleethold_proto::{pack, text};
use fleethold_testdb::Proxy;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::databases::{self, Database};
use crate::load::{Bench, Http, SERVICE, Settings, Watched};

/// The service that takes messages and does nothing.
pub(crate) const NOOP: &str = "bench-noop";
/// The service that takes many messages in one call; not for the stock server.
pub(crate) const BATCH: &str = "bench-batch";
/// The time a server has to start or to stop.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const HOST: &str = "127.0.0.1";

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// The stock server, which needs MariaDB.
    Stock,
    /// This program with its embedded store.
    Sqlite,
    /// This program on MariaDB.
    MariaDb,
    /// This program on PostgreSQL.
    Postgres,
}

impl System {
    /// All of them; the first is what others are compared with.
    pub const ALL: [Self; 4] = [Self::Stock, Self::Sqlite, Self::MariaDb, Self::Postgres];

    /// Returns its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Sqlite => "sqlite",
            Self::MariaDb => "mariadb",
            Self::Postgres => "postgres",
        }
    }

    /// Returns its name in reports.
    pub fn title(self) -> &'static str {
        match self {
            Self::Stock => "stock 0.1.19, MariaDB",
            Self::Sqlite => "fleethold, SQLite",
            Self::MariaDb => "fleethold, MariaDB",
            Self::Postgres => "fleethold, PostgreSQL",
        }
    }

    fn database(self) -> Option<Database> {
        match self {
            Self::Stock | Self::MariaDb => Some(Database::MariaDb),
            Self::Postgres => Some(Database::Postgres),
            Self::Sqlite => None,
        }
    }
}

/// Which programs are compared, and where.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This program.
    pub fleethold: PathBuf,
    /// Upstream's `fleetspeak-server`.
    pub stock: PathBuf,
    /// Holds the data of all servers; decides which disk is measured.
    pub directory: PathBuf,
    /// The processors that servers and databases may use, as `taskset` takes them; none: all.
    pub cores: Option<String>,
}

impl Programs {
    /// Makes the directory, and all paths independent of the current one.
    pub(crate) fn absolute(&self) -> Result<Self> {
        let directory = &self.directory;
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make `{}`", directory.display()))?;
        Ok(Self {
            directory: directory.canonicalize()?,
            fleethold: self.fleethold.canonicalize()?,
            // It may be missing where it is not used.
            stock: self.stock.canonicalize().unwrap_or_default(),
            cores: self.cores.clone(),
        })
    }
}

/// A system that can be started and stopped with the same data.
pub(crate) struct Bed {
    pub(crate) system: System,
    programs: Programs,
    database: Option<databases::Server>,
    proxy: Option<Proxy>,
    directory: TempDir,
    ca_pem: String,
    ports: Ports,
}

#[derive(Clone, Copy)]
struct Ports {
    agents: u16,
    admin: u16,
    service: u16,
}

/// A server that is ready; killed when dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) watched: Vec<Watched>,
}

impl Bed {
    /// Makes an empty database, certificates and configuration.
    pub(crate) async fn make(system: System, programs: &Programs) -> Result<Self> {
        Self::make_behind(system, programs, false).await
    }

    /// As [`make`](Self::make), with a proxy that counts round trips to the database.
    pub(crate) async fn make_counted(system: System, programs: &Programs) -> Result<Self> {
        Self::make_behind(system, programs, true).await
    }

    async fn make_behind(system: System, programs: &Programs, counted: bool) -> Result<Self> {
        let title = system.title();
        let directory = tempfile::Builder::new()
            .prefix(&format!("compare-{}-", system.name()))
            .tempdir_in(&programs.directory)
            .with_context(|| format!("cannot write to `{}`", programs.directory.display()))?;
        let database = match system.database() {
            None => None,
            Some(kind) => {
                let server = databases::Server::start(kind, programs.cores.as_deref()).await;
                Some(server.with_context(|| format!("{title} has no database"))?)
            }
        };
        let proxy = match &database {
            Some(database) if counted => {
                let target = SocketAddr::from((Ipv4Addr::LOCALHOST, database.port()));
                Some(Proxy::start(target).await?)
            }
            _ => None,
        };
        let ports = Ports {
            agents: free_port()?,
            admin: free_port()?,
            service: free_port()?,
        };
        let authority = Authority::make()?;
        let bed = Self {
            system,
            programs: programs.clone(),
            database,
            proxy,
            directory,
            ca_pem: authority.ca_pem.clone(),
            ports,
        };
        bed.configure(&authority)?;
        Ok(bed)
    }

    fn configure(&self, authority: &Authority) -> Result<()> {
        let address = |port: u16| format!("{HOST}:{port}");
        // This program is told by `--store`.
        let source = match (self.system, &self.database) {
            (System::Stock, Some(database)) => {
                Some(database.data_source(self.database_port(database)))
            }
            _ => None,
        };
        let components = Config {
            mysql_data_source_name: source.unwrap_or_default(),
            https_config: Some(HttpsConfig {
                listen_address: address(self.ports.agents),
                certificates: authority.certificate_pem.clone(),
                key: authority.key_pem.clone(),
                ..HttpsConfig::default()
            }),
            admin_config: Some(AdminConfig {
                listen_address: address(self.ports.admin),
            }),
            ..Config::default()
        };
        let connection = grpcservice::Config {
            target: address(self.ports.service),
            insecure: true,
            ..grpcservice::Config::default()
        };
        let service = |name: &str, factory: &str| ServiceConfig {
            name: name.to_owned(),
            factory: factory.to_owned(),
            // No message is put off because others are under way.
            max_parallelism: 100_000,
            ..ServiceConfig::default()
        };
        let mut services = vec![
            ServiceConfig {
                config: Some(pack(&connection)),
                ..service(SERVICE, "GRPC")
            },
            service(NOOP, "NOOP"),
        ];
        if self.system != System::Stock {
            let batch = BatchConfig {
                connection: Some(connection),
                ..BatchConfig::default()
            };
            services.push(ServiceConfig {
                config: Some(pack(&batch)),
                ..service(BATCH, "GRPC")
            });
        }
        let services = ServerConfig {
            services,
            ..ServerConfig::default()
        };
        fs::write(self.path("components.config"), text::print(&components))?;
        fs::write(self.path("services.config"), text::print(&services))?;
        fs::create_dir(self.path("data"))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the server and waits until it takes connections.
    pub(crate) async fn start(&self) -> Result<Running> {
        let title = self.system.title();
        let mut command = self.command();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir(self.directory.path());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {title}: {command:?}"))?;
        let mut running = Running {
            watched: vec![Watched {
                name: "server".to_owned(),
                pid: child.id(),
            }],
            child,
        };
        if let Some(database) = &self.database {
            running.watched.push(Watched {
                name: "database".to_owned(),
                pid: database.pid()?,
            });
        }
        let deadline = Instant::now() + LIMIT;
        for port in [self.ports.agents, self.ports.admin] {
            while TcpStream::connect((HOST, port)).is_err() {
                if let Some(status) = running.child.try_wait()? {
                    bail!("{title} ended with {status}: {}", self.log_end());
                }
                ensure!(
                    Instant::now() < deadline,
                    "{title} did not start: {}",
                    self.log_end()
                );
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(running)
    }

    fn command(&self) -> Command {
        let mut words: Vec<String> = Vec::new();
        if databases::find("setpriv") {
            // No server survives this process.
            words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
        }
        if let Some(cores) = &self.programs.cores {
            words.extend(["taskset", "--cpu-list", cores].map(str::to_owned));
        }
        let path = |path: &Path| path.display().to_string();
        let (components, services) = (
            path(&self.path("components.config")),
            path(&self.path("services.config")),
        );
        match self.system {
            System::Stock => {
                words.push(path(&self.programs.stock));
                words.extend(["-components_config".to_owned(), components]);
                words.extend(["-services_config".to_owned(), services]);
                words.push("-logtostderr".to_owned());
            }
            System::Sqlite | System::MariaDb | System::Postgres => {
                words.push(path(&self.programs.fleethold));
                words.extend(["serve", "--log", "warn"].map(str::to_owned));
                words.extend(["--components-config".to_owned(), components]);
                words.extend(["--services-config".to_owned(), services]);
                words.extend(["--store".to_owned(), self.store_url()]);
                // All simulated agents come from one address, and all at once.
                for limit in [
                    "--max-enrolments-per-second",
                    "--max-connections-per-second",
                    "--max-connections-per-address",
                    "--max-agent-messages-per-second",
                ] {
                    words.extend([limit, "1000000"].map(str::to_owned));
                }
                words.extend(["--max-handshakes", "1000"].map(str::to_owned));
            }
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    fn database_port(&self, database: &databases::Server) -> u16 {
        let proxy = self.proxy.as_ref();
        proxy.map_or(database.port(), Proxy::port)
    }

    /// Returns how many round trips to the database there were, if they are counted.
    pub(crate) fn round_trips(&self) -> Option<u64> {
        self.proxy.as_ref().map(Proxy::round_trips)
    }

    /// Returns the database server, if there is one.
    pub(crate) fn database(&self) -> Option<&databases::Server> {
        self.database.as_ref()
    }

    fn store_url(&self) -> String {
        match &self.database {
            Some(database) => database.url(self.database_port(database)),
            None => format!(
                "sqlite:{}",
                self.path("data").join("fleethold.db").display()
            ),
        }
    }

    /// Returns how to load the server.
    pub(crate) fn settings(&self, running: &Running) -> Settings {
        Settings {
            target: format!("{HOST}:{}", self.ports.agents),
            admin: Some(format!("{HOST}:{}", self.ports.admin)),
            ca_pem: self.ca_pem.clone().into_bytes(),
            server_name: None,
            own_server: false,
            agents: 1,
            duration: Duration::from_secs(1),
            rate: None,
            http: Http::One,
            deflate: false,
            service_listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.service))),
            watched: running.watched.clone(),
            directories: Vec::new(),
            progress: Arc::new(|_| {}),
        }
    }

    /// Prepares a fleet for the server.
    pub(crate) async fn connect(&self, running: &Running) -> Result<Bench> {
        Bench::connect(self.settings(running))
            .await
            .with_context(|| format!("{}: {}", self.system.title(), self.log_end()))
    }

    /// Returns the bytes the data takes on disk; the server must not run.
    pub(crate) async fn data_bytes(&mut self) -> Result<u64> {
        match &mut self.database {
            Some(database) => database.data_bytes().await,
            None => Ok(crate::load::bytes_in(&[self.path("data")])),
        }
    }

    fn log_end(&self) -> String {
        const LINES: usize = 8;
        let Ok(log) = File::open(self.path("log")) else {
            return String::new();
        };
        let lines: Vec<_> = BufReader::new(log).lines().map_while(Result::ok).collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Running {
    /// Asks the server to stop, and waits for its end; kills it if it does not.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        let deadline = Instant::now() + LIMIT / 2;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// A CA, and a certificate for loopback.
pub(crate) struct Authority {
    pub(crate) ca_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Authority {
    pub(crate) fn make() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate()?;
        let ca = params.self_signed(&ca_key)?;
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate()?;
        let names = vec![HOST.to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        Ok(Self {
            ca_pem: ca.pem(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

pub(crate) fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("loopback has no free port")?;
    Ok(listener.local_addr()?.port())
}
