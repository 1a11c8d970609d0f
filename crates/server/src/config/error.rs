//! What can be wrong with a configuration file.

use std::path::{Path, PathBuf};

use fleethold_proto::text::TextError;

/// Says what is wrong with a configuration file, where, and what to write instead.
///
/// It never quotes keys, certificates or passwords.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is not the text of the expected message.
    #[error("`{}` is not a text-format {message_type}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The full name of the message it should hold.
        message_type: String,
        /// Line, column and problem.
        source: TextError,
        /// What to write instead.
        hint: String,
    },
    /// A field is missing or has a value that cannot be used.
    #[error("`{}`: field `{field}` {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field, for example `services[0].factory`.
        field: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
        /// What to write instead.
        hint: String,
    },
    /// A field asks for something that does not exist here, and that cannot be ignored.
    #[error("`{}`: field `{field}` is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What to write instead.
        hint: String,
    },
}

impl ConfigError {
    /// Returns what to write instead.
    pub fn hint(&self) -> &str {
        match self {
            Self::Syntax { hint, .. }
            | Self::Invalid { hint, .. }
            | Self::Unsupported { hint, .. } => hint,
        }
    }

    pub(super) fn invalid(
        path: &Path,
        field: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            field: field.into(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    pub(super) fn unsupported(
        path: &Path,
        field: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            field: field.into(),
            hint: hint.into(),
        }
    }
}
