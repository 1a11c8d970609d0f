//! The connection of operator commands to a running server.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_server::config::split_listen;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::output::{Exit, Failure};

/// What a server may answer at once; lists of clients are long.
const MAX_ANSWER_BYTES: usize = 1 << 30;

pub(crate) type Client = AdminClient<InterceptedService<Channel, Token>>;

/// Shows the caller's token, if there is one.
#[derive(Clone)]
pub(crate) struct Token(Option<AsciiMetadataValue>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

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
    /// A file with the token that the server's access file knows you by
    #[arg(long, env = "FLEETHOLD_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// The certificate in PEM by which the admin interface is recognized; for servers whose admin interface speaks TLS
    #[arg(long, env = "FLEETHOLD_ADMIN_CA", value_name = "FILE")]
    admin_ca: Option<PathBuf>,
}

impl AdminArgs {
    /// Connects to the server.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let channel = self.channel().await?;
        Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// Connects to the server, for a service other than `fleetspeak.server.Admin`.
    pub(crate) async fn channel(&self) -> Result<InterceptedService<Channel, Token>, Failure> {
        let authority = match self.admin.strip_prefix(':') {
            Some(port) => format!("localhost:{port}"),
            None => self.admin.clone(),
        };
        let scheme = match self.admin_ca {
            Some(_) => "https",
            None => "http",
        };
        let token = self.token()?;
        let endpoint = match (
            Endpoint::from_shared(format!("{scheme}://{authority}")),
            &self.admin_ca,
        ) {
            (Ok(endpoint), Some(path)) => {
                let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?));
                endpoint.tls_config(tls)
            }
            (endpoint, _) => endpoint,
        };
        let channel = match endpoint {
            Ok(endpoint) => {
                endpoint
                    .connect_timeout(Duration::from_secs(5))
                    .timeout(Duration::from_secs(300))
                    .connect()
                    .await
            }
            Err(error) => Err(error),
        };
        let channel = channel.map_err(|error| {
            let error = anyhow::Error::new(error).context(format!("cannot reach the server at `{}`", self.admin));
            Failure::new(Exit::Temporary, error).hint(
                "start it with `fleethold serve`, or say where its admin interface is with --admin or FLEETHOLD_ADMIN",
            )
        })?;
        Ok(InterceptedService::new(channel, token))
    }

    fn token(&self) -> Result<Token, Failure> {
        let Some(path) = &self.admin_token_file else {
            return Ok(Token(None));
        };
        let text = read(path)?;
        let mut token: AsciiMetadataValue =
            format!("Bearer {}", text.trim()).parse().map_err(|_| {
                let error = format!("`{}` holds no token", path.display());
                Failure::usage(error).hint("write it on one line, in plain ASCII")
            })?;
        token.set_sensitive(true);
        Ok(Token(Some(token)))
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read `{}`: {error}", path.display())))
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
