//! What users see: data on standard output, everything else on standard error.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use fleethold_proto::fleetspeak::Label;
use fleethold_proto::{Timestamp, fleetspeak};

/// How the program ends, other than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It could not be done.
    Failed = 1,
    /// The command line or a configuration file has to be corrected.
    Usage = 2,
    /// It may work if tried again.
    Temporary = 75,
}

/// Why the program ends, with one thing to try.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status.
    pub(crate) exit: Exit,
    error: anyhow::Error,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
            hint: None,
        }
    }

    /// What cannot be done as asked.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, anyhow::Error::msg(message.into()))
    }

    /// A command line or configuration that has to be corrected.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, anyhow::Error::msg(message.into()))
    }

    /// Returns what has failed.
    pub(crate) fn error(&self) -> &anyhow::Error {
        &self.error
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was attempted before the reason.
    #[must_use]
    pub(crate) fn context(mut self, message: impl Into<String>) -> Self {
        self.error = self.error.context(message.into());
        self
    }

    #[must_use]
    pub(crate) fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Returns the failure for machines.
    pub(crate) fn json(&self) -> Value {
        json!({ "error": format!("{:#}", self.error), "hint": self.hint })
    }

    /// Writes the failure to standard error.
    pub(crate) fn report(&self) {
        let (red, end) = if colored(&io::stderr()) {
            ("\x1b[1;31m", "\x1b[0m")
        } else {
            ("", "")
        };
        let mut text = format!("{red}error:{end} {}\n", printable(&self.error.to_string()));
        for cause in self.error.chain().skip(1) {
            // Some errors repeat their source in their own text.
            let cause = printable(&cause.to_string());
            if !text.contains(&cause) {
                let _ = writeln!(text, "  cause: {cause}");
            }
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "  hint: {}", printable(hint));
        }
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

/// Returns whether colours may be written to `stream`.
pub(crate) fn colored(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes lines of data.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result.context("cannot write to standard output")?),
    }
}

/// Writes data for machines.
pub(crate) fn print_json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// Writes data as aligned columns below their titles.
pub(crate) fn print_table<const N: usize>(
    titles: [&str; N],
    rows: &[[String; N]],
) -> Result<(), Failure> {
    print(&table(titles, rows))
}

/// Tells the user something that is not data.
pub(crate) fn note(message: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(message));
}

/// Shows that long work goes on; nothing is drawn unless standard error is a terminal.
pub(crate) fn progress(message: String) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("the template is valid");
    let bar = ProgressBar::new_spinner()
        .with_style(style)
        .with_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Returns `text` without anything that could control a terminal: agents choose labels and failure texts.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped: Box<dyn Iterator<Item = char>> = if c.is_control() {
                Box::new(c.escape_default())
            } else {
                Box::new(std::iter::once(c))
            };
            escaped
        })
        .collect()
}

/// Returns bytes as lower-case hex digits, the text form of all ids.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns a time for tables: UTC in seconds, or `-`.
pub(crate) fn time(time: Option<&Timestamp>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| Timestamp { nanos: 0, ..*time }.to_string(),
    )
}

/// Returns a time for machines: RFC 3339 in UTC, or null.
pub(crate) fn json_time(time: Option<&Timestamp>) -> Value {
    time.map_or(Value::Null, |time| Value::String(time.to_string()))
}

/// Returns labels for tables: `service:label,…`.
pub(crate) fn labels(labels: &[Label]) -> String {
    let labels: Vec<_> = labels
        .iter()
        .map(|label| printable(&format!("{}:{}", label.service_name, label.label)))
        .collect();
    or_dash(&labels.join(","))
}

/// Returns a text for machines: null if it is empty.
pub(crate) fn json_or_null(text: &str) -> Value {
    match text {
        "" => Value::Null,
        _ => json!(text),
    }
}

/// Returns labels for machines.
pub(crate) fn json_labels(labels: &[Label]) -> Value {
    labels
        .iter()
        .map(|label| json!({ "service_name": label.service_name, "label": label.label }))
        .collect()
}

/// Returns the service of an address, or nothing.
pub(crate) fn service(address: Option<&fleetspeak::Address>) -> &str {
    address.map_or("", |address| &address.service_name)
}

/// Returns `text` for a table.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        printable(text)
    }
}

fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = titles.map(|title| title.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let titles = titles.map(str::to_owned);
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["a".to_owned(), "x".to_owned()],
            ["longer".to_owned(), String::new()],
        ];
        assert_eq!(
            table(["ID", "NAME"], &rows),
            "ID      NAME\na       x\nlonger\n"
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\né"), "a\\u{1b}[2Jb\\né");
    }

    #[test]
    fn times_are_in_utc() {
        let moment = Timestamp {
            seconds: 1_700_000_000,
            nanos: 120_000_000,
        };
        assert_eq!(time(Some(&moment)), "2023-11-14T22:13:20Z");
        assert_eq!(time(None), "-");
        assert_eq!(json_time(Some(&moment)), json!("2023-11-14T22:13:20.120Z"));
    }
}
