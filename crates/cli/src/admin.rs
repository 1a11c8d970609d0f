//! The connection of operator commands to a running server.

use std::time::Duration;

use clap::Args;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_server::config::split_listen;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::output::{Exit, Failure};

/// What a server may answer at once; lists of clients are long.
const MAX_ANSWER_BYTES: usize = 1 << 30;

pub(crate) type Client = AdminClient<Channel>;

/// Where the server is.
#[derive(Args, Debug)]
pub(crate) struct AdminArgs {
    /// The admin interface of the server
    #[arg(
        long,
        env = "FLEETHOLD_ADMIN",
        default_value = "localhost:6061",
        value_name = "HOST:PORT"
    )]
    #[arg(value_parser = host_port)]
    admin: String,
}

impl AdminArgs {
    /// Connects to the server.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let channel = self.channel().await?;
        Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// Connects to the server, for a service other than `fleetspeak.server.Admin`.
    pub(crate) async fn channel(&self) -> Result<Channel, Failure> {
        let authority = match self.admin.strip_prefix(':') {
            Some(port) => format!("localhost:{port}"),
            None => self.admin.clone(),
        };
        let channel = match Endpoint::from_shared(format!("http://{authority}")) {
            Ok(endpoint) => {
                endpoint
                    .connect_timeout(Duration::from_secs(5))
                    .timeout(Duration::from_secs(300))
                    .connect()
                    .await
            }
            Err(error) => Err(error),
        };
        channel.map_err(|error| {
            let error = anyhow::Error::new(error).context(format!("cannot reach the server at `{}`", self.admin));
            Failure::new(Exit::Temporary, error).hint(
                "start it with `fleethold serve`, or say where its admin interface is with --admin or FLEETHOLD_ADMIN",
            )
        })
    }
}

/// Returns how to report that the server did not do what was asked: `action` completes "cannot".
pub(crate) fn refused(action: impl Into<String>) -> impl FnOnce(Status) -> Failure {
    let action = action.into();
    move |status| {
        let exit = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::Cancelled => {
                Exit::Temporary
            }
            _ => Exit::Failed,
        };
        let reason = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        let failure =
            Failure::new(exit, anyhow::Error::msg(reason)).context(format!("cannot {action}"));
        match exit {
            Exit::Temporary => failure.hint("try again in a moment"),
            _ => failure,
        }
    }
}

/// Accepts `host:port` and its relatives on the command line.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    match split_listen(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(problem) => Err(format!("it {problem}; write HOST:PORT")),
    }
}
