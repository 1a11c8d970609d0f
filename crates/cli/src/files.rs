//! `fleethold file …`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use fleethold_proto::fleetspeak::server::{DeleteFileRequest, StoreFileRequest};

use crate::admin::{AdminArgs, refused};
use crate::output::{self, Failure};

#[derive(Subcommand, Debug)]
pub(crate) enum FileCommand {
    /// Store a file that agents can download, in the place of an earlier one with the same name
    Put(PutArgs),
    /// Remove a file; it is no error if there is none
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
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// The service the file belongs to
    service: String,
    /// The name agents ask for
    name: String,
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
    let data = std::fs::read(&args.path)
        .with_context(|| format!("cannot read `{}`", args.path.display()))?;
    let bytes = data.len();
    let mut admin = args.admin.connect().await?;
    let request = StoreFileRequest {
        service_name: args.service.clone(),
        file_name: args.name.clone(),
        data: data.into(),
    };
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
    Ok(())
}
