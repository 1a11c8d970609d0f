//! `fleethold message …`.

use std::time::Duration;

use clap::{Args, Subcommand};
use fleethold_proto::fleetspeak::server::{
    GetMessageStatusRequest, GetMessageStatusResponse, GetPendingMessagesRequest,
};
use fleethold_proto::fleetspeak::{Address, Message};
use fleethold_store::{ClientId, MessageId, Random};
use serde_json::{Value, json};

use crate::admin::{self, AdminArgs, refused};
use crate::data::DataArgs;
use crate::output::{self, Failure};

/// How often `--wait` asks.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Subcommand, Debug)]
pub(crate) enum MessageCommand {
    /// Send a message to a service of an agent and print its id
    ///
    /// With --json, prints an object with the field message_id, and with --wait also the fields of `message status`.
    /// With --wait, the exit status is 1 if the message failed.
    Send(SendArgs),
    /// Show what became of a message
    ///
    /// With --json, prints an object with the fields message_id, state (pending, processed or failed), creation_time,
    /// processed_time and failed_reason. Times are RFC 3339 in UTC; what is not known is null.
    Status(StatusArgs),
    /// List the messages that wait for clients
    ///
    /// With --json, prints an array of objects with the fields message_id, client_id, source_service,
    /// destination_service, message_type and creation_time.
    Pending(PendingArgs),
}

#[derive(Args, Debug)]
pub(crate) struct SendArgs {
    /// The client that receives the message
    #[arg(long, value_name = "ID")]
    client: ClientId,
    /// The service of the agent that receives the message
    #[arg(long, value_name = "NAME")]
    service: String,
    /// The type of the message
    #[arg(long = "type", value_name = "TYPE")]
    message_type: String,
    /// The service that seems to send the message and receives answers
    #[arg(long, value_name = "NAME", default_value = "fleethold")]
    source_service: String,
    #[command(flatten)]
    data: DataArgs,
    /// Wait until the agent has processed the message
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// The message
    #[arg(value_name = "ID")]
    id: MessageId,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct PendingArgs {
    /// The client for which messages wait; may be given several times
    #[arg(long = "client", value_name = "ID", required = true)]
    clients: Vec<ClientId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

impl MessageCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Send(args) => send(args).await,
            Self::Status(args) => status(args).await,
            Self::Pending(args) => pending(args).await,
        }
    }
}

async fn send(args: SendArgs) -> Result<(), Failure> {
    let id = MessageId::random(&Random::from_os());
    let message = Message {
        message_id: id.to_bytes(),
        source: Some(Address {
            service_name: args.source_service,
            ..Address::default()
        }),
        destination: Some(Address {
            client_id: args.client.to_bytes(),
            service_name: args.service,
        }),
        message_type: args.message_type,
        data: args.data.read()?,
        ..Message::default()
    };
    let mut admin = args.admin.connect().await?;
    admin
        .insert_message(message)
        .await
        .map_err(refused(format!(
            "send a message to client `{}`",
            args.client
        )))?;
    if !args.wait {
        return match args.json {
            true => output::print_json(&json!({ "message_id": id.to_string() })),
            false => output::print(&format!("{id}\n")),
        };
    }
    // Whoever gives up waiting can still ask for the status.
    if !args.json {
        output::print(&format!("{id}\n"))?;
    }
    let progress = output::progress(format!("waiting for client {}", args.client));
    let status = wait(&mut admin, id).await;
    progress.finish_and_clear();
    let status = status?;
    if args.json {
        output::print_json(&json_status(id, &status))?;
    }
    match &status.result {
        Some(result) if result.failed => {
            let reason = anyhow::Error::msg(result.failed_reason.clone());
            Err(Failure::from(reason).context(format!("message `{id}` failed")))
        }
        _ => Ok(()),
    }
}

async fn status(args: StatusArgs) -> Result<(), Failure> {
    let mut admin = args.admin.connect().await?;
    let status = fetch_status(&mut admin, args.id).await?;
    if args.json {
        return output::print_json(&json_status(args.id, &status));
    }
    let mut text = format!(
        "message    {}\nstate      {}\ncreated    {}\n",
        args.id,
        state(&status),
        output::time(status.creation_time.as_ref())
    );
    if let Some(result) = &status.result {
        text.push_str(&format!(
            "processed  {}\n",
            output::time(result.processed_time.as_ref())
        ));
        if result.failed {
            text.push_str(&format!(
                "reason     {}\n",
                output::or_dash(&result.failed_reason)
            ));
        }
    }
    output::print(&text)
}

async fn pending(args: PendingArgs) -> Result<(), Failure> {
    let mut admin = args.admin.connect().await?;
    let request = GetPendingMessagesRequest {
        client_ids: args.clients.iter().map(|id| id.to_bytes()).collect(),
        ..GetPendingMessagesRequest::default()
    };
    let answer = admin.get_pending_messages(request).await;
    let mut messages = answer
        .map_err(refused("list pending messages"))?
        .into_inner()
        .messages;
    messages.sort_by_key(|message| message.creation_time.map(|time| (time.seconds, time.nanos)));
    if args.json {
        return output::print_json(&messages.iter().map(json_message).collect());
    }
    if messages.is_empty() {
        output::note("no pending messages");
        return Ok(());
    }
    let rows: Vec<_> = messages
        .iter()
        .map(|message| {
            [
                output::hex(&message.message_id),
                output::time(message.creation_time.as_ref()),
                output::hex(client(message)),
                output::or_dash(output::service(message.source.as_ref())),
                output::or_dash(output::service(message.destination.as_ref())),
                output::or_dash(&message.message_type),
            ]
        })
        .collect();
    output::print_table(
        ["MESSAGE", "CREATED", "CLIENT", "FROM", "TO", "TYPE"],
        &rows,
    )
}

async fn wait(
    admin: &mut admin::Client,
    id: MessageId,
) -> Result<GetMessageStatusResponse, Failure> {
    loop {
        let status = fetch_status(admin, id).await?;
        if status.result.is_some() {
            return Ok(status);
        }
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
}

async fn fetch_status(
    admin: &mut admin::Client,
    id: MessageId,
) -> Result<GetMessageStatusResponse, Failure> {
    let request = GetMessageStatusRequest {
        message_id: id.to_bytes(),
    };
    let answer = admin.get_message_status(request).await;
    let status = answer
        .map_err(refused(format!("get the status of message `{id}`")))?
        .into_inner();
    // Servers answer nothing at all about messages they do not know.
    if status == GetMessageStatusResponse::default() {
        return Err(Failure::failed(format!("there is no message `{id}`")));
    }
    Ok(status)
}

fn state(status: &GetMessageStatusResponse) -> &'static str {
    match &status.result {
        None => "pending",
        Some(result) if result.failed => "failed",
        Some(_) => "processed",
    }
}

fn json_status(id: MessageId, status: &GetMessageStatusResponse) -> Value {
    let result = status.result.as_ref();
    json!({
        "message_id": id.to_string(),
        "state": state(status),
        "creation_time": output::json_time(status.creation_time.as_ref()),
        "processed_time": output::json_time(result.and_then(|result| result.processed_time.as_ref())),
        "failed_reason": result.filter(|result| result.failed).map(|result| &result.failed_reason),
    })
}

fn json_message(message: &Message) -> Value {
    json!({
        "message_id": output::hex(&message.message_id),
        "client_id": output::hex(client(message)),
        "source_service": output::service(message.source.as_ref()),
        "destination_service": output::service(message.destination.as_ref()),
        "message_type": message.message_type,
        "creation_time": output::json_time(message.creation_time.as_ref()),
    })
}

fn client(message: &Message) -> &[u8] {
    message
        .destination
        .as_ref()
        .map_or(&[], |address| &address.client_id)
}
