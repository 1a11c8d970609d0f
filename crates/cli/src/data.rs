//! The payload of a message or broadcast, as given on the command line.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use fleethold_proto::Any;

use crate::output::Failure;

/// What a message carries.
#[derive(Args, Debug)]
pub(crate) struct DataArgs {
    /// The payload: these characters, as they are
    #[arg(long, value_name = "TEXT", conflicts_with = "data_file")]
    data: Option<String>,
    /// The payload: the bytes of this file
    #[arg(long, value_name = "FILE")]
    data_file: Option<PathBuf>,
    /// The type of the payload, for example type.googleapis.com/fleetspeak.DieRequest
    #[arg(long, value_name = "URL")]
    data_type_url: Option<String>,
}

impl DataArgs {
    /// Returns the payload, if there is any.
    pub(crate) fn read(self) -> Result<Option<Any>, Failure> {
        let value = match (self.data, self.data_file) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(path)) => std::fs::read(&path)
                .with_context(|| format!("cannot read payload `{}`", path.display()))?,
            // Some messages are their type alone.
            (None, None) if self.data_type_url.is_some() => Vec::new(),
            (None, None) => return Ok(None),
        };
        Ok(Some(Any {
            type_url: self.data_type_url.unwrap_or_default(),
            value: value.into(),
        }))
    }
}
