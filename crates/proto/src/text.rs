//! Reads and writes protobuf text format.

use std::fmt;
use std::sync::LazyLock;

use miette::Diagnostic;
use prost::{Message, Name};
use prost_reflect::text_format::{FormatOptions, ParseError};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(crate::DESCRIPTORS).expect("the build made valid descriptors")
});

/// Reads a message.
///
/// # Errors
///
/// The text is malformed or does not fit the message.
pub fn parse<M: Message + Name + Default>(text: &str) -> Result<M, TextError> {
    let message = DynamicMessage::parse_text_format(descriptor::<M>(), text)
        .map_err(|error| TextError::new(text, &error))?;
    Ok(message
        .transcode_to()
        .expect("descriptor and type were generated together"))
}

/// Writes a message.
pub fn print<M: Message + Name>(message: &M) -> String {
    let mut dynamic = DynamicMessage::new(descriptor::<M>());
    dynamic
        .transcode_from(message)
        .expect("descriptor and type were generated together");
    dynamic.to_text_format_with_options(&FormatOptions::new().pretty(true))
}

fn descriptor<M: Name>() -> MessageDescriptor {
    POOL.get_message_by_name(&M::full_name())
        .expect("all messages are registered")
}

/// Says what is wrong with a text and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextError {
    line: usize,
    column: usize,
    message: String,
}

impl TextError {
    fn new(text: &str, error: &ParseError) -> Self {
        let offset = error
            .labels()
            .and_then(|mut labels| labels.next())
            .map_or(text.len(), |label| label.offset());
        Self::at(text, offset, error.to_string())
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

    /// Returns what is wrong.
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
