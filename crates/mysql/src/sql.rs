//! Statements as text: the one place that writes values and lists into SQL.
//!
//! Several statements travel in one packet, so that a transaction can be a
//! single round trip. That needs the text protocol, whose values are literals;
//! only digits and hexadecimal digits are ever written, so no value can end a
//! literal, in whatever character set or mode the server reads it.

use std::borrow::Cow;
use std::fmt::Write as _;

use mysql_async::Value as Bound;

/// Statements of one packet have at most this many bytes, unless one alone has more.
const PACKET_BYTES: usize = 1024 * 1024;
/// A statement with a value of more bytes is prepared: its bytes are not doubled.
const LARGE_BYTES: usize = 256 * 1024;
/// Rows of one statement.
pub(crate) const MOST_ROWS: usize = 500;

/// A value of a statement; `?` stands for it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Int(i64),
    Unsigned(u64),
    Double(f64),
    Bytes(&'a [u8]),
    Text(&'a str),
    /// As many copies of a template as there are rows.
    List(&'a List<'a>),
}

/// Rows of values, each written with the same template.
#[derive(Debug)]
pub(crate) struct List<'a> {
    first: &'static str,
    template: &'static str,
    separator: &'static str,
    values: Vec<Value<'a>>,
    columns: usize,
}

impl<'a> List<'a> {
    /// Makes the list in `IN (?)`.
    pub(crate) fn ids(ids: impl IntoIterator<Item = &'a (impl AsRef<[u8]> + 'a + ?Sized)>) -> Self {
        Self {
            first: "?",
            template: "?",
            separator: ", ",
            values: ids
                .into_iter()
                .map(|id| Value::Bytes(id.as_ref()))
                .collect(),
            columns: 1,
        }
    }

    /// Makes rows of `template`, which has a `?` for each column.
    pub(crate) fn rows<const N: usize>(
        template: &'static str,
        separator: &'static str,
        rows: impl IntoIterator<Item = [Value<'a>; N]>,
    ) -> Self {
        Self {
            first: template,
            template,
            separator,
            values: rows.into_iter().flatten().collect(),
            columns: N,
        }
    }

    /// Makes a table of rows; `first` also names the columns.
    pub(crate) fn table<const N: usize>(
        first: &'static str,
        template: &'static str,
        rows: impl IntoIterator<Item = [Value<'a>; N]>,
    ) -> Self {
        Self {
            first,
            ..Self::rows(template, " UNION ALL ", rows)
        }
    }

    fn write(&self, text: &mut String) {
        for (row, values) in self.values.chunks(self.columns).enumerate() {
            if row > 0 {
                text.push_str(self.separator);
            }
            let template = if row == 0 { self.first } else { self.template };
            write_statement(text, template, values);
        }
    }
}

impl Value<'_> {
    fn write(self, text: &mut String) {
        let written = match self {
            Value::Null => {
                text.push_str("NULL");
                Ok(())
            }
            Value::Int(number) => write!(text, "{number}"),
            Value::Unsigned(number) => write!(text, "{number}"),
            // A sign, digits, a point and an exponent; callers store finite numbers.
            Value::Double(number) => write!(text, "{number:e}"),
            Value::Bytes(bytes) => {
                write_hex(text, bytes);
                Ok(())
            }
            Value::Text(value) => {
                text.push_str("_utf8mb4 ");
                write_hex(text, value.as_bytes());
                Ok(())
            }
            Value::List(list) => {
                list.write(text);
                Ok(())
            }
        };
        written.expect("a string takes whatever is written");
    }

    fn bytes(self) -> usize {
        match self {
            Value::Bytes(bytes) => bytes.len(),
            Value::Text(text) => text.len(),
            _ => 0,
        }
    }

    fn bound(self) -> Bound {
        match self {
            Value::Int(number) => Bound::Int(number),
            Value::Unsigned(number) => Bound::UInt(number),
            Value::Double(number) => Bound::Double(number),
            Value::Bytes(bytes) => Bound::Bytes(bytes.to_vec()),
            Value::Text(text) => Bound::Bytes(text.as_bytes().to_vec()),
            Value::Null | Value::List(_) => Bound::NULL,
        }
    }
}

impl<'a> From<Option<&'a [u8]>> for Value<'a> {
    fn from(value: Option<&'a [u8]>) -> Self {
        value.map_or(Value::Null, Value::Bytes)
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        value.map_or(Value::Null, Value::Text)
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(value: Option<i64>) -> Self {
        value.map_or(Value::Null, Value::Int)
    }
}

/// Statements in the order in which they run.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    packets: Vec<Packet>,
}

/// What goes to the server at once.
#[derive(Debug)]
pub(crate) enum Packet {
    /// Statements with `;` between them; the first and the last ones may frame
    /// those of the batch.
    Text {
        statements: Vec<Cow<'static, str>>,
        before: usize,
        after: usize,
    },
    /// One statement with values of its own.
    Prepared {
        sql: &'static str,
        values: Vec<Bound>,
    },
}

/// How statements become packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// As many in one packet as fit.
    Together,
    /// Each after the answer to the one before: a node of a cluster whose
    /// transaction is ended by another node's between two statements of one
    /// packet goes on with the second one as if nothing had happened, or leaves
    /// it out. What begins a transaction travels with its first statement:
    /// there is nothing to lose before that.
    OneByOne,
}

impl Packet {
    fn text(statements: Vec<Cow<'static, str>>) -> Self {
        Self::Text {
            statements,
            before: 0,
            after: 0,
        }
    }
}

impl Batch {
    /// Makes a batch of one statement.
    pub(crate) fn of(sql: &'static str, values: &[Value<'_>]) -> Self {
        let mut batch = Self::default();
        batch.add(sql, values);
        batch
    }

    /// Adds a statement.
    pub(crate) fn add(&mut self, sql: &'static str, values: &[Value<'_>]) {
        if values.iter().any(|value| value.bytes() > LARGE_BYTES) {
            self.packets.push(Packet::Prepared {
                sql,
                values: values.iter().map(|value| value.bound()).collect(),
            });
            return;
        }
        let mut text = String::with_capacity(sql.len() + 64 * values.len());
        write_statement(&mut text, sql, values);
        self.add_text(text);
    }

    /// Returns how many statements it has.
    pub(crate) fn len(&self) -> usize {
        let count = |packet: &Packet| match packet {
            Packet::Text { statements, .. } => statements.len(),
            Packet::Prepared { .. } => 1,
        };
        self.packets.iter().map(count).sum()
    }

    /// Adds all statements of another batch.
    pub(crate) fn append(&mut self, other: Self) {
        self.packets.extend(other.packets);
    }

    fn add_text(&mut self, text: String) {
        if let Some(Packet::Text { statements, .. }) = self.packets.last_mut()
            && statements.iter().map(|text| text.len()).sum::<usize>() + text.len() < PACKET_BYTES
        {
            statements.push(text.into());
            return;
        }
        self.packets.push(Packet::text(vec![text.into()]));
    }

    /// Puts statements in front of the first and behind the last one.
    pub(crate) fn framed(
        mut self,
        first: &[&'static str],
        last: &[&'static str],
        framing: Framing,
    ) -> Vec<Packet> {
        if framing == Framing::OneByOne {
            self.split();
        }
        let texts = |frame: &[&'static str]| -> Vec<_> {
            let texts = frame.iter();
            texts.map(|text| Cow::Borrowed(*text)).collect()
        };
        if !first.is_empty() {
            if !matches!(self.packets.first(), Some(Packet::Text { .. })) {
                self.packets.insert(0, Packet::text(Vec::new()));
            }
            if let Some(Packet::Text {
                statements, before, ..
            }) = self.packets.first_mut()
            {
                statements.splice(0..0, texts(first));
                *before = first.len();
            }
        }
        if !last.is_empty() {
            if framing == Framing::OneByOne
                || !matches!(self.packets.last(), Some(Packet::Text { .. }))
            {
                self.packets.push(Packet::text(Vec::new()));
            }
            if let Some(Packet::Text {
                statements, after, ..
            }) = self.packets.last_mut()
            {
                statements.extend(texts(last));
                *after = last.len();
            }
        }
        self.packets
    }

    /// Makes each statement a packet.
    fn split(&mut self) {
        let packets = std::mem::take(&mut self.packets);
        for packet in packets {
            match packet {
                Packet::Text { statements, .. } => {
                    let alone = statements.into_iter().map(|text| Packet::text(vec![text]));
                    self.packets.extend(alone);
                }
                prepared @ Packet::Prepared { .. } => self.packets.push(prepared),
            }
        }
    }
}

/// Cuts rows into slices for one statement each; a row with more bytes than a
/// statement should have is a slice of its own.
pub(crate) fn slices<T>(rows: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fitting = rest.iter().take(MOST_ROWS).take_while(|row| {
            sum += bytes(row);
            sum <= LARGE_BYTES
        });
        let (slice, others) = rest.split_at(fitting.count().max(1).min(rest.len()));
        rest = others;
        (!slice.is_empty()).then_some(slice)
    })
}

fn write_statement(text: &mut String, sql: &str, values: &[Value<'_>]) {
    let mut parts = sql.split('?');
    text.push_str(parts.next().unwrap_or_default());
    let mut values = values.iter();
    for part in parts {
        let value = values.next().expect("a value for each place");
        value.write(text);
        text.push_str(part);
    }
    assert!(values.next().is_none(), "a place for each value");
}

fn write_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.reserve(2 * bytes.len() + 3);
    text.push_str("x'");
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(sql: &'static str, values: &[Value<'_>]) -> String {
        let mut packets = Batch::of(sql, values).framed(&[], &[], Framing::Together);
        match packets.pop() {
            Some(Packet::Text { mut statements, .. }) if statements.len() == 1 => {
                statements.remove(0).into_owned()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_are_digits_whatever_they_contain() {
        let hostile = "'; DROP TABLE messages; -- \\' ? \u{0}";
        let written = text(
            "SELECT ?, ?, ?, ?, ?",
            &[
                Value::Text(hostile),
                Value::Bytes(b"'?"),
                Value::Int(i64::MIN),
                Value::Double(-0.5),
                Value::Null,
            ],
        );
        assert!(
            written.starts_with("SELECT _utf8mb4 x'273b2044524f50"),
            "{written}"
        );
        assert!(
            written.ends_with(", x'273f', -9223372036854775808, -5e-1, NULL"),
            "{written}"
        );
    }

    #[test]
    fn lists_repeat_their_template() {
        let ids = List::ids([&[1_u8][..], &[2]]);
        assert_eq!(text("IN (?)", &[Value::List(&ids)]), "IN (x'01', x'02')");
        let rows = [[Value::Int(1), Value::Null], [Value::Int(2), Value::Null]];
        let table = List::table("SELECT ? AS a, ? AS b", "SELECT ?, ?", rows);
        assert_eq!(
            text("FROM (?) AS v", &[Value::List(&table)]),
            "FROM (SELECT 1 AS a, NULL AS b UNION ALL SELECT 2, NULL) AS v"
        );
    }

    #[test]
    fn slices_have_few_rows_and_few_bytes() {
        let lengths = |rows: &[usize]| -> Vec<usize> {
            slices(rows, |bytes| *bytes).map(<[usize]>::len).collect()
        };
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[1; MOST_ROWS + 1]), [MOST_ROWS, 1]);
        assert_eq!(
            lengths(&[1, LARGE_BYTES, 1, 2 * LARGE_BYTES, 1]),
            [1, 1, 1, 1, 1]
        );
        assert_eq!(lengths(&[1, LARGE_BYTES - 1, 1]), [2, 1]);
    }

    #[test]
    fn packets_stay_small_and_large_values_travel_alone() {
        let mut batch = Batch::default();
        let half = vec![0; LARGE_BYTES];
        for _ in 0..3 {
            batch.add("SELECT ?", &[Value::Bytes(&half)]);
        }
        let large = vec![0; LARGE_BYTES + 1];
        batch.add("SELECT ?", &[Value::Bytes(&large)]);
        let packets = batch.framed(&["BEGIN"], &["COMMIT"], Framing::Together);
        assert_eq!(lengths(&packets), [2, 1, 1, 99, 1]);
        for packet in &packets {
            if let Packet::Text { statements, .. } = packet {
                let bytes: usize = statements.iter().map(|text| text.len()).sum();
                assert!(bytes < PACKET_BYTES + 100);
            }
        }
    }

    /// Returns how many statements each packet has, 99 for a prepared one.
    fn lengths(packets: &[Packet]) -> Vec<usize> {
        let lengths = packets.iter().map(|packet| match packet {
            Packet::Text { statements, .. } => statements.len(),
            Packet::Prepared { .. } => 99,
        });
        lengths.collect()
    }

    #[test]
    fn one_by_one_only_the_beginning_travels_with_another_statement() {
        let batch = || {
            let mut batch = Batch::default();
            for number in 0..3 {
                batch.add("SELECT ?", &[Value::Int(number)]);
            }
            batch
        };
        let begin = &["SET", "BEGIN"];
        let packets = batch().framed(begin, &["COMMIT"], Framing::OneByOne);
        assert_eq!(lengths(&packets), [3, 1, 1, 1]);
        let packets = batch().framed(begin, &["COMMIT"], Framing::Together);
        assert_eq!(lengths(&packets), [6]);
        let none = Batch::default();
        let packets = none.framed(begin, &["COMMIT"], Framing::OneByOne);
        assert_eq!(lengths(&packets), [2, 1]);
    }
}
