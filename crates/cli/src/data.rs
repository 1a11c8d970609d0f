//! The payload of a message or broadcast, as given on the command line.

use std::path::PathBuf;

use clap::Args;
use fleethold_proto::Any;

use crate::output::Failure;
use crate::upload;

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
        // Some messages are their type alone.
        if self.data.is_none() && self.data_file.is_none() && self.data_type_url.is_none() {
            return Ok(None);
        }
        let mut payload = Any {
            type_url: self.data_type_url.unwrap_or_default(),
            value: self.data.unwrap_or_default().into(),
        };
        if let Some(path) = &self.data_file {
            payload.value = upload::read(path, &payload)?.into();
        }
        Ok(Some(payload))
    }
}
