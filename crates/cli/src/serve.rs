//! `fleethold serve`: from the command line to a running server, and its end.

mod agents;
mod check;
mod inherit;
mod notifications;
mod operation;
mod plan;
mod retention;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use fleethold_proto::fleetspeak::grpcservice;
use fleethold_proto::fleetspeak::server::ServiceConfig;
use fleethold_proto::pack;
use fleethold_server::config::split_listen;
use fleethold_server::{Server, StartError};
use fleethold_store::{Clock, Maintenance, Random, Store};
use tokio::signal::unix::Signal;
use tokio::task::JoinHandle;

use self::operation::Reloader;
use self::retention::RetentionArgs;
use crate::admin::host_port;
use crate::logging::LogArgs;
use crate::output::{self, Exit, Failure};
use crate::signals::Signals;
use crate::store::{StoreUrl, Takeover, check_takeover};

pub(crate) use check::{CheckArgs, run as check_config};
pub(crate) use plan::{read, server_name, shell_word, wrong_config};

/// When a stop that does not come to an end is cut off.
const STOP_LIMIT: Duration = Duration::from_millis(9500);

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Where the server keeps its data; made on the first start
    #[arg(
        long,
        env = "FLEETHOLD_DATA_DIR",
        default_value = "./fleethold-data",
        value_name = "DIR"
    )]
    data_dir: PathBuf,
    /// Where agents connect
    #[arg(long, default_value = "127.0.0.1:4443", value_name = "HOST:PORT", value_parser = host_port)]
    #[arg(conflicts_with = "components_config")]
    listen: String,
    /// Where the admin interface listens; whoever reaches it controls the fleet
    #[arg(long, default_value = "127.0.0.1:6061", value_name = "HOST:PORT", value_parser = host_port)]
    #[arg(conflicts_with = "components_config")]
    admin_listen: String,
    /// The store, sqlite:PATH, postgres://USER:PASSWORD@HOST/DATABASE or mysql://…; if not given, fleethold.db in the data directory
    #[arg(
        long,
        env = "FLEETHOLD_STORE",
        hide_env_values = true,
        value_name = "URL"
    )]
    store: Option<StoreUrl>,
    /// What to do with a database that a stock server has made; without this it is refused
    #[arg(long, value_name = "WHAT")]
    takeover: Option<Takeover>,
    /// A service of this server: a name, and where its program listens for gRPC; may be given several times
    #[arg(long = "service", value_name = "NAME=HOST:PORT", value_parser = service)]
    services: Vec<ServiceConfig>,
    /// An address under which agents reach this server, if it is not the one of --listen; may be given several times
    #[arg(long = "public-address", value_name = "HOST:PORT", value_parser = public_address)]
    #[arg(conflicts_with = "components_config")]
    public_addresses: Vec<String>,
    /// Upstream's components file; it decides about listeners and certificates, and no data directory is used
    #[arg(long, value_name = "FILE")]
    components_config: Option<PathBuf>,
    /// Upstream's services file, in the place of services.config in the data directory
    #[arg(long, value_name = "FILE")]
    services_config: Option<PathBuf>,
    #[command(flatten)]
    agents: agents::AgentArgs,
    #[command(flatten)]
    notifications: notifications::NotificationArgs,
    #[command(flatten)]
    operation: operation::OperationArgs,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// A server that serves, and what belongs to it.
struct Running {
    server: Server,
    store: Arc<dyn Store>,
    /// Keeps the data directory locked.
    plan: plan::Plan,
    reloader: Reloader,
    /// Removes what is old; no task if everything is kept.
    retention: Option<JoinHandle<()>>,
}

pub(crate) async fn run(args: ServeArgs, clock: Arc<dyn Clock>) -> Result<(), Failure> {
    args.log.install()?;
    if args.takeover == Some(Takeover::Check) {
        return check_takeover(&plan::store_of(args)?).await;
    }
    let mut signals = Signals::install()?;
    let mut hang_up = Signals::hang_up()?;
    let random = Arc::new(Random::from_os());
    let mut running = tokio::select! {
        running = Box::pin(start(args, Arc::clone(&clock), Arc::clone(&random))) => running?,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before the start was complete");
            return Ok(());
        }
    };
    let signal = serve(&mut running, &mut signals, &mut hang_up, &*clock, &random).await;
    tracing::info!(signal, "stopping");
    tokio::select! {
        stopped = tokio::time::timeout(STOP_LIMIT, stop(running)) => stopped.unwrap_or_else(|_| {
            Err(Failure::failed("the server did not stop in time"))
        }),
        signal = signals.next() => Err(Failure::failed(format!("stopping was cut off by {signal}"))),
    }
}

/// Serves until a signal asks to stop, and follows the files meanwhile.
async fn serve(
    running: &mut Running,
    signals: &mut Signals,
    hang_up: &mut Signal,
    clock: &dyn Clock,
    random: &Random,
) -> &'static str {
    let mut look = tokio::time::interval(operation::LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            signal = signals.next() => return signal,
            _ = hang_up.recv() => true,
            _ = look.tick() => false,
        };
        let agents = running.plan.agents_certificate(clock, random);
        let now = clock.now();
        running.reloader.look(&running.server, agents, now, asked);
    }
}

async fn start(
    args: ServeArgs,
    clock: Arc<dyn Clock>,
    random: Arc<Random>,
) -> Result<Running, Failure> {
    let (operation, takeover) = (args.operation.clone(), args.takeover);
    let retention = args.retention;
    let mut plan = plan::Plan::new(args, &*clock, &random)?;
    let reloader = Reloader::new(operation, &plan.config);
    let retention = retention.or(plan.store.retention());
    agents::allow_open_files(&mut plan.config.limits);
    let names = std::env::var("LISTEN_FDNAMES").ok();
    inherit::take(&mut plan.config, names.as_deref())?;
    for warning in &plan.config.warnings {
        tracing::warn!("{warning}");
    }
    let maintained = plan
        .store
        .open_with(takeover, Arc::clone(&clock), Arc::clone(&random))
        .await?;
    let store: Arc<dyn Store> = Arc::<dyn Maintenance>::clone(&maintained);
    let config = plan.config.clone();
    let started = Server::start(
        config,
        Arc::clone(&store),
        Arc::clone(&clock),
        Arc::clone(&random),
    );
    let server = match started.await {
        Ok(server) => server,
        Err(error) => {
            let _ = store.close().await;
            return Err(not_started(error));
        }
    };
    let mut running = Running {
        server,
        store,
        reloader,
        retention: RetentionArgs::start(retention, maintained, clock, &random),
        plan,
    };
    let announced = running.plan.announce(&running.server);
    if let Err(failure) = announced.and_then(|text| output::print(&text)) {
        let _ = stop(running).await;
        return Err(failure);
    }
    let address = |address: Option<SocketAddr>| address.map(tracing::field::display);
    tracing::info!(
        agents = address(running.server.agents_addr()),
        admin = address(running.server.admin_addr()),
        stats = address(running.server.stats_addr()),
        "ready"
    );
    Ok(running)
}

async fn stop(running: Running) -> Result<(), Failure> {
    let Running {
        server,
        store,
        plan,
        reloader: _,
        retention,
    } = running;
    if let Some(task) = retention {
        // A step that is under way is done or not done.
        task.abort();
    }
    server.stop().await;
    let closed = store.close().await;
    drop(plan);
    closed.map_err(|error| Failure::new(Exit::Failed, error).context("cannot close the store"))?;
    tracing::info!("stopped");
    Ok(())
}

fn not_started(error: StartError) -> Failure {
    match error {
        StartError::Listen { ref source, .. } => {
            let hint = match source.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "stop the program that listens there, or choose another port"
                }
                std::io::ErrorKind::PermissionDenied => {
                    "choose a port above 1023, or allow the server to use this one"
                }
                _ => "choose an address of this machine",
            };
            Failure::new(Exit::Failed, error).hint(hint)
        }
        StartError::OpenAdmin { .. } => Failure::new(Exit::Usage, error).hint(
            "give it --admin-certificate, --admin-key and --admin-access; or, if the network is guarded by other means, --admin-insecure",
        ),
        error => Failure::new(Exit::Usage, error),
    }
}

/// Reads `NAME=HOST:PORT`.
fn service(text: &str) -> Result<ServiceConfig, String> {
    let (name, target) = text.split_once('=').ok_or("write NAME=HOST:PORT")?;
    match name {
        "" => return Err("it has no name; write NAME=HOST:PORT".to_owned()),
        "system" | "client" => {
            return Err(format!("the name `{name}` is reserved; choose another one"));
        }
        _ => {}
    }
    if target.is_empty() {
        return Err("it has no address; write NAME=HOST:PORT".to_owned());
    }
    let back_end = grpcservice::Config {
        target: target.to_owned(),
        insecure: true,
        ..grpcservice::Config::default()
    };
    Ok(ServiceConfig {
        name: name.to_owned(),
        factory: "GRPC".to_owned(),
        config: Some(pack(&back_end)),
        ..ServiceConfig::default()
    })
}

/// Accepts an address agents can connect to.
pub(crate) fn public_address(text: &str) -> Result<String, String> {
    match split_listen(text) {
        Ok(("", _)) => Err("it has no host; write HOST:PORT".to_owned()),
        Ok((_, 0)) => Err("nobody can connect to port 0; write HOST:PORT".to_owned()),
        Ok((host, _)) if server_name(host).is_none() => {
            Err(format!("`{host}` is neither a host name nor an address"))
        }
        Ok(_) => Ok(text.to_owned()),
        Err(problem) => Err(format!("it {problem}; write HOST:PORT")),
    }
}
