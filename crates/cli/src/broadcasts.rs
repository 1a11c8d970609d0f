//! `fleethold broadcast …`.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use fleethold_proto::fleethold::admin::v1::GetBroadcastProgressRequest;
use fleethold_proto::fleethold::admin::v1::broadcasts_client::BroadcastsClient;
use fleethold_proto::fleetspeak::server::{
    Broadcast, CreateBroadcastRequest, DisableBroadcastsRequest, ListActiveBroadcastsRequest,
};
use fleethold_proto::fleetspeak::{Address, Label};
use fleethold_store::clock::timestamp;
use fleethold_store::{BROADCAST_UNLIMITED, BroadcastId, Clock, Random};
use serde_json::{Value, json};

use crate::admin::{self, AdminArgs, refused};
use crate::data::DataArgs;
use crate::output::{self, Failure};

#[derive(Subcommand, Debug)]
pub(crate) enum BroadcastCommand {
    /// Send a message to every agent that has the labels, now or later, and print the broadcast's id
    ///
    /// With --json, prints an object with the field broadcast_id.
    Create(Box<CreateArgs>),
    /// List active broadcasts
    ///
    /// With --json, prints an array of objects with the fields broadcast_id, source_service, destination_service,
    /// message_type, required_labels (objects with service_name and label), group_name and expiration_time. Times are
    /// RFC 3339 in UTC; what is not set is null.
    List(ListArgs),
    /// Stop broadcasts; agents that have their message keep it
    ///
    /// With --json, prints an object with the field broadcast_ids, an array.
    Disable(DisableArgs),
    /// Show how many agents were sent a broadcast, and what became of it
    ///
    /// With --json, prints an object with the fields broadcast_id, sent, acknowledged, failed and pending.
    Progress(ProgressArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// The service of the agents that receives the message
    #[arg(long, value_name = "NAME")]
    service: String,
    /// The type of the message
    #[arg(long = "type", value_name = "TYPE")]
    message_type: String,
    /// How many agents receive it at most; all of them if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..BROADCAST_UNLIMITED))]
    limit: Option<u64>,
    /// A label that agents need, for example client:linux; may be given several times
    #[arg(long = "label", value_name = "SERVICE:LABEL", value_parser = label)]
    labels: Vec<Label>,
    /// After how many seconds it stops; never if not given
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_153_600_000))]
    expires_in: Option<u64>,
    /// Takes the place of active broadcasts with the same group, services and labels
    #[arg(
        long,
        value_name = "GROUP",
        default_value = "",
        hide_default_value = true
    )]
    group: String,
    /// The service that seems to send the message and receives answers
    #[arg(long, value_name = "NAME", default_value = "fleethold")]
    source_service: String,
    #[command(flatten)]
    data: DataArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct DisableArgs {
    /// The broadcasts; nothing happens unless all of them are active
    #[arg(value_name = "ID", required = true)]
    ids: Vec<BroadcastId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ProgressArgs {
    /// The broadcast, active or not
    #[arg(value_name = "ID")]
    id: BroadcastId,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

impl BroadcastCommand {
    pub(crate) async fn run(self, clock: &dyn Clock) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create(*args, clock).await,
            Self::List(args) => list(args).await,
            Self::Disable(args) => disable(args).await,
            Self::Progress(args) => progress(args).await,
        }
    }
}

async fn create(args: CreateArgs, clock: &dyn Clock) -> Result<(), Failure> {
    let id = BroadcastId::random(&Random::from_os());
    let address = |service_name| {
        Some(Address {
            service_name,
            ..Address::default()
        })
    };
    let expiration_time = match args.expires_in {
        Some(seconds) => {
            let time = clock.now().checked_add(Duration::from_secs(seconds));
            Some(timestamp(
                time.context("the clock of this machine is wrong")?,
            ))
        }
        None => None,
    };
    let broadcast = Broadcast {
        broadcast_id: id.to_bytes(),
        source: address(args.source_service),
        destination: address(args.service),
        message_type: args.message_type,
        required_labels: args.labels,
        expiration_time,
        data: args.data.read()?,
        group_name: args.group,
    };
    let request = CreateBroadcastRequest {
        broadcast: Some(broadcast),
        limit: args.limit.unwrap_or(BROADCAST_UNLIMITED),
    };
    let mut admin = args.admin.connect().await?;
    admin
        .create_broadcast(request)
        .await
        .map_err(refused("create a broadcast"))?;
    if args.json {
        return output::print_json(&json!({ "broadcast_id": id.to_string() }));
    }
    output::print(&format!("{id}\n"))
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let mut admin = args.admin.connect().await?;
    let mut broadcasts = fetch_active(&mut admin).await?;
    broadcasts.sort_by(|a, b| a.broadcast_id.cmp(&b.broadcast_id));
    if args.json {
        return output::print_json(&broadcasts.iter().map(json_broadcast).collect());
    }
    if broadcasts.is_empty() {
        output::note("no active broadcasts");
        return Ok(());
    }
    let rows: Vec<_> = broadcasts
        .iter()
        .map(|broadcast| {
            [
                output::hex(&broadcast.broadcast_id),
                output::or_dash(output::service(broadcast.source.as_ref())),
                output::or_dash(output::service(broadcast.destination.as_ref())),
                output::or_dash(&broadcast.message_type),
                output::labels(&broadcast.required_labels),
                output::or_dash(&broadcast.group_name),
                broadcast
                    .expiration_time
                    .map_or_else(|| "never".to_owned(), |time| output::time(Some(&time))),
            ]
        })
        .collect();
    let titles = [
        "BROADCAST",
        "FROM",
        "TO",
        "TYPE",
        "LABELS",
        "GROUP",
        "EXPIRES",
    ];
    output::print_table(titles, &rows)
}

async fn disable(args: DisableArgs) -> Result<(), Failure> {
    let mut admin = args.admin.connect().await?;
    let active = fetch_active(&mut admin).await?;
    for id in &args.ids {
        if !active
            .iter()
            .any(|broadcast| broadcast.broadcast_id[..] == id.as_bytes()[..])
        {
            let failure = Failure::failed(format!("there is no active broadcast `{id}`"));
            return Err(failure.hint("`fleethold broadcast list` shows all active broadcasts"));
        }
    }
    let request = DisableBroadcastsRequest {
        broadcast_ids: args.ids.iter().map(|id| id.to_bytes()).collect(),
    };
    admin
        .disable_broadcasts(request)
        .await
        .map_err(refused("disable broadcasts"))?;
    for id in &args.ids {
        output::note(&format!("broadcast {id} is disabled"));
    }
    if args.json {
        let ids: Vec<_> = args.ids.iter().map(BroadcastId::to_string).collect();
        return output::print_json(&json!({ "broadcast_ids": ids }));
    }
    Ok(())
}

async fn progress(args: ProgressArgs) -> Result<(), Failure> {
    let mut broadcasts = BroadcastsClient::new(args.admin.channel().await?);
    let request = GetBroadcastProgressRequest {
        broadcast_id: args.id.to_bytes(),
    };
    let answer = broadcasts.get_broadcast_progress(request).await;
    let progress = answer
        .map_err(refused("show the progress of a broadcast"))?
        .into_inner();
    if args.json {
        return output::print_json(&json!({
            "broadcast_id": args.id.to_string(),
            "sent": progress.sent,
            "acknowledged": progress.acknowledged,
            "failed": progress.failed,
            "pending": progress.pending,
        }));
    }
    let row = [
        progress.sent,
        progress.acknowledged,
        progress.failed,
        progress.pending,
    ];
    let titles = ["SENT", "ACKNOWLEDGED", "FAILED", "PENDING"];
    output::print_table(titles, &[row.map(|count| count.to_string())])
}

async fn fetch_active(admin: &mut admin::Client) -> Result<Vec<Broadcast>, Failure> {
    let answer = admin
        .list_active_broadcasts(ListActiveBroadcastsRequest::default())
        .await;
    Ok(answer
        .map_err(refused("list broadcasts"))?
        .into_inner()
        .broadcasts)
}

fn json_broadcast(broadcast: &Broadcast) -> Value {
    json!({
        "broadcast_id": output::hex(&broadcast.broadcast_id),
        "source_service": output::service(broadcast.source.as_ref()),
        "destination_service": output::json_or_null(output::service(broadcast.destination.as_ref())),
        "message_type": broadcast.message_type,
        "required_labels": output::json_labels(&broadcast.required_labels),
        "group_name": output::json_or_null(&broadcast.group_name),
        "expiration_time": output::json_time(broadcast.expiration_time.as_ref()),
    })
}

fn label(text: &str) -> Result<Label, String> {
    match text.split_once(':') {
        Some((service_name, label)) if !label.is_empty() => Ok(Label {
            service_name: service_name.to_owned(),
            label: label.to_owned(),
        }),
        _ => Err("write SERVICE:LABEL, for example client:linux".to_owned()),
    }
}
