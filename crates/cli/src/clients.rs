//! `fleethold client …`.

use clap::{Args, Subcommand};
use fleethold_proto::fleetspeak::server::{self, BlacklistClientRequest, ListClientsRequest};
use fleethold_store::ClientId;
use serde_json::{Value, json};

use crate::admin::{self, AdminArgs, refused};
use crate::output::{self, Failure};

#[derive(Subcommand, Debug)]
pub(crate) enum ClientCommand {
    /// List clients, the one seen last at the end
    ///
    /// With --json, prints an array of objects with the fields client_id, labels (objects with service_name and
    /// label), last_contact_time, last_contact_address, last_contact_streaming_to, last_clock and blacklisted. Times
    /// are RFC 3339 in UTC; what is not known is null.
    List(ListArgs),
    /// Make clients throw away their identity and enrol anew under another id; this cannot be undone
    ///
    /// With --json, prints an object with the field client_ids, an array.
    Blacklist(BlacklistArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Only these clients; all of them have to exist
    #[arg(value_name = "ID")]
    ids: Vec<ClientId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct BlacklistArgs {
    /// The clients; nothing happens unless all of them exist
    #[arg(value_name = "ID", required = true)]
    ids: Vec<ClientId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

impl ClientCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(args) => list(args).await,
            Self::Blacklist(args) => blacklist(args).await,
        }
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let mut admin = args.admin.connect().await?;
    let clients = fetch(&mut admin, &args.ids).await?;
    if args.json {
        return output::print_json(&clients.iter().map(json_client).collect());
    }
    if clients.is_empty() {
        output::note("no clients");
        return Ok(());
    }
    let rows: Vec<_> = clients
        .iter()
        .map(|client| {
            [
                output::hex(&client.client_id),
                output::time(client.last_contact_time.as_ref()),
                output::or_dash(&client.last_contact_address),
                output::labels(&client.labels),
                (if client.blacklisted {
                    "blacklisted"
                } else {
                    ""
                })
                .to_owned(),
            ]
        })
        .collect();
    output::print_table(["CLIENT", "LAST SEEN", "ADDRESS", "LABELS", "STATE"], &rows)
}

async fn blacklist(args: BlacklistArgs) -> Result<(), Failure> {
    let mut admin = args.admin.connect().await?;
    fetch(&mut admin, &args.ids).await?;
    for id in &args.ids {
        let request = BlacklistClientRequest {
            client_id: id.to_bytes(),
        };
        admin
            .blacklist_client(request)
            .await
            .map_err(refused(format!("blacklist client `{id}`")))?;
        output::note(&format!("client {id} is blacklisted"));
    }
    if args.json {
        let ids: Vec<_> = args.ids.iter().map(ClientId::to_string).collect();
        return output::print_json(&json!({ "client_ids": ids }));
    }
    Ok(())
}

/// Returns the clients with these ids, or all; oldest contact first.
async fn fetch(
    admin: &mut admin::Client,
    ids: &[ClientId],
) -> Result<Vec<server::Client>, Failure> {
    let progress = output::progress("listing clients".to_owned());
    let request = ListClientsRequest {
        client_ids: ids.iter().map(|id| id.to_bytes()).collect(),
    };
    let answer = admin
        .list_clients(request)
        .await
        .map_err(refused("list clients"));
    progress.finish_and_clear();
    let mut clients = answer?.into_inner().clients;
    for id in ids {
        if !clients
            .iter()
            .any(|client| client.client_id[..] == id.as_bytes()[..])
        {
            let failure = Failure::failed(format!("there is no client `{id}`"));
            return Err(failure.hint("`fleethold client list` shows all clients"));
        }
    }
    let last_contact = |client: &server::Client| {
        client
            .last_contact_time
            .map(|time| (time.seconds, time.nanos))
    };
    clients.sort_by(|a, b| {
        let key = |client| (last_contact(client), &client.client_id);
        key(a).cmp(&key(b))
    });
    Ok(clients)
}

fn json_client(client: &server::Client) -> Value {
    json!({
        "client_id": output::hex(&client.client_id),
        "labels": output::json_labels(&client.labels),
        "last_contact_time": output::json_time(client.last_contact_time.as_ref()),
        "last_contact_address": output::json_or_null(&client.last_contact_address),
        "last_contact_streaming_to": output::json_or_null(&client.last_contact_streaming_to),
        "last_clock": output::json_time(client.last_clock.as_ref()),
        "blacklisted": client.blacklisted,
    })
}
