//! `fleethold file …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fleethold_proto::fleetspeak::server::{DeleteFileRequest, StoreFileRequest};
use serde_json::json;

use crate::admin::{AdminArgs, refused};
use crate::output::{self, Failure};
use crate::upload;

#[derive(Subcommand, Debug)]
pub(crate) enum FileCommand {
    /// Store a file that agents can download, in the place of an earlier one with the same name
    ///
    /// With --json, prints an object with the fields service, name and bytes.
    Put(PutArgs),
    /// Remove a file; it is no error if there is none
    ///
    /// With --json, prints an object with the fields service and name.
    Rm(RmArgs),
}

#[derive(Args, Debug)]
pub(crate) struct PutArgs {
    /// The service the file belongs to
    service: String,
    /// The name agents ask for
    name: String,
    /// The file to store
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// The service the file belongs to
    service: String,
    /// The name agents ask for
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

impl FileCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Put(args) => put(args).await,
            Self::Rm(args) => rm(args).await,
        }
    }
}

async fn put(args: PutArgs) -> Result<(), Failure> {
    let mut request = StoreFileRequest {
        service_name: args.service.clone(),
        file_name: args.name.clone(),
        ..StoreFileRequest::default()
    };
    request.data = upload::read(&args.path, &request)?.into();
    let bytes = request.data.len();
    let mut admin = args.admin.connect().await?;
    let progress = output::progress(format!("storing {bytes} bytes"));
    let answer = admin.store_file(request).await.map_err(refused(format!(
        "store file `{}` of service `{}`",
        args.name, args.service
    )));
    progress.finish_and_clear();
    answer?;
    output::note(&format!(
        "stored file {} of service {}, {bytes} bytes",
        args.name, args.service
    ));
    if args.json {
        let stored = json!({ "service": args.service, "name": args.name, "bytes": bytes });
        return output::print_json(&stored);
    }
    Ok(())
}

async fn rm(args: RmArgs) -> Result<(), Failure> {
    let mut admin = args.admin.connect().await?;
    let request = DeleteFileRequest {
        service_name: args.service.clone(),
        file_name: args.name.clone(),
    };
    admin.delete_file(request).await.map_err(refused(format!(
        "remove file `{}` of service `{}`",
        args.name, args.service
    )))?;
    output::note(&format!(
        "removed file {} of service {}",
        args.name, args.service
    ));
    if args.json {
        return output::print_json(&json!({ "service": args.service, "name": args.name }));
    }
    Ok(())
}
