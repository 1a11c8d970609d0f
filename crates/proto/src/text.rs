//! Reads and writes protobuf text format, the language of all configuration files.
//!
//! Files written by hand, by Go and by Python are all understood:
//!
//! * messages as `field {…}` or `field: {…}`, and both with angle brackets;
//! * repeated fields as repetition or as a list `[a, b]`, and `,` or `;` after each field;
//! * comments from `#` to the end of the line;
//! * strings in either quotes, adjacent strings, and the escapes of C with `\uXXXX` and `\UXXXXXXXX`;
//! * [`Any`](crate::Any) both as it is and expanded, `[type.googleapis.com/fleetspeak.DieRequest] {…}`.
//!
//! Expansion works for every message of this crate.
//!
//! ```
//! use fleethold_proto::fleetspeak::server::ServerConfig;
//! use fleethold_proto::text;
//!
//! let config: ServerConfig = text::parse("broadcast_poll_time: < seconds: 5 > # Half the default.")?;
//! assert_eq!(text::print(&config), "broadcast_poll_time {\n  seconds: 5\n}\n");
//!
//! let error = text::parse::<ServerConfig>("broadcast_pol_time { seconds: 5 }").unwrap_err();
//! assert_eq!((error.line(), error.column()), (1, 1));
//! # Ok::<(), text::TextError>(())
//! ```

mod nesting;
mod print;

use std::fmt;
use std::sync::LazyLock;

use miette::Diagnostic;
use prost::{Message, Name};
use prost_reflect::text_format::ParseError;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

/// Limits how deep brackets nest; only an Any within an Any gets beyond ten.
const MAX_DEPTH: usize = 64;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(crate::DESCRIPTORS).expect("the build made valid descriptors")
});

/// Reads a message.
///
/// # Errors
///
/// The text is malformed or does not fit the message: unknown fields, single fields that are set twice and values
/// out of range are errors. So are more than 64 nested brackets.
///
/// # Panics
///
/// The type is none of this crate.
pub fn parse<M: Message + Name + Default>(text: &str) -> Result<M, TextError> {
    if let Some(offset) = nesting::too_deep(text, MAX_DEPTH) {
        let message = format!("brackets nest deeper than {MAX_DEPTH} levels");
        return Err(TextError::at(text, offset, message));
    }
    let message = DynamicMessage::parse_text_format(descriptor::<M>(), text)
        .map_err(|error| TextError::new(text, &error))?;
    Ok(message
        .transcode_to()
        .expect("the build made types and descriptors from the same files"))
}

/// Writes a message, one field per line and in the order of field numbers.
///
/// Stock programs and [`parse`] read the text. Equal messages give equal texts. An [`Any`](crate::Any) is expanded
/// unless it holds something else than a message of this crate.
///
/// # Panics
///
/// The type is none of this crate.
pub fn print<M: Message + Name>(message: &M) -> String {
    let mut dynamic = DynamicMessage::new(descriptor::<M>());
    dynamic
        .transcode_from(message)
        .expect("the build made types and descriptors from the same files");
    let mut out = String::new();
    print::message(&mut out, &dynamic, 0);
    out
}

fn descriptor<M: Name>() -> MessageDescriptor {
    let name = M::full_name();
    POOL.get_message_by_name(&name)
        .unwrap_or_else(|| panic!("{name} is no message of this crate"))
}

/// Says what is wrong with a text and where.
///
/// It never repeats string literals of the text, because configuration files hold keys and passwords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextError {
    line: usize,
    column: usize,
    message: String,
}

impl TextError {
    fn new(text: &str, error: &ParseError) -> Self {
        // Errors without a position are about the end of the text.
        let offset = error
            .labels()
            .and_then(|mut labels| labels.next())
            .map_or(text.len(), |label| label.offset());
        let mut message = error.to_string();
        if let Some((start, _)) = message.split_once(", but found '\"") {
            message = format!("{start}, but found a string");
        }
        Self::at(text, offset, message)
    }

    fn at(text: &str, offset: usize, message: String) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line_start = before
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |i| i + 1);
        Self {
            line: before.iter().filter(|&&b| b == b'\n').count() + 1,
            column: String::from_utf8_lossy(&before[line_start..])
                .chars()
                .count()
                + 1,
            message,
        }
    }

    /// Returns the line, counted from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Returns the column in characters, counted from 1.
    pub fn column(&self) -> usize {
        self.column
    }

    /// Returns what is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.message
        )
    }
}

impl std::error::Error for TextError {}

#[cfg(test)]
mod tests;
