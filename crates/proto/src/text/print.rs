use std::fmt::{Display, Write};

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};

use super::{MAX_DEPTH, POOL};
use crate::any;

/// Expands an Any only up to here, so that what stands in it cannot exceed the parser's limit.
const MAX_ANY_DEPTH: usize = MAX_DEPTH / 2;

/// Writes all fields of a message that are set, one per line.
pub(super) fn message(out: &mut String, message: &DynamicMessage, depth: usize) {
    if depth < MAX_ANY_DEPTH
        && let Some((type_url, body)) = expand(message)
    {
        return field(
            out,
            &format!("[{type_url}]"),
            &Value::Message(body),
            None,
            depth,
        );
    }
    for (descriptor, value) in message.fields() {
        fields(out, &descriptor, value, depth);
    }
}

/// Returns the message in an Any, if its text can be read again as the same Any.
fn expand(message: &DynamicMessage) -> Option<(String, DynamicMessage)> {
    if message.descriptor().full_name() != "google.protobuf.Any" {
        return None;
    }
    let type_url = message.get_field_by_number(1)?.as_str()?.to_owned();
    let descriptor = POOL.get_message_by_name(type_url.strip_prefix(any::PREFIX)?)?;
    let value = message.get_field_by_number(2)?.as_bytes()?.clone();
    let body = DynamicMessage::decode(descriptor, value).ok()?;
    knows_all(&body).then_some((type_url, body))
}

/// Says whether text can tell everything that is in a message.
fn knows_all(message: &DynamicMessage) -> bool {
    let known = |value: &Value| value.as_message().is_none_or(knows_all);
    message.unknown_fields().next().is_none()
        && message.fields().all(|(_, value)| match value {
            Value::List(values) => values.iter().all(known),
            value => known(value),
        })
}

/// Writes a field, which takes several lines when it is repeated.
fn fields(out: &mut String, descriptor: &FieldDescriptor, value: &Value, depth: usize) {
    let name = descriptor.name();
    let kind = descriptor.kind();
    match value {
        Value::List(values) => {
            for value in values {
                field(out, name, value, Some(&kind), depth);
            }
        }
        Value::Map(map) => {
            let Kind::Message(entry) = kind else { return };
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|&(key, _)| key);
            for (key, value) in entries {
                open(out, name, depth);
                let key = Value::from(key.clone());
                field(
                    out,
                    "key",
                    &key,
                    Some(&entry.map_entry_key_field().kind()),
                    depth + 1,
                );
                field(
                    out,
                    "value",
                    value,
                    Some(&entry.map_entry_value_field().kind()),
                    depth + 1,
                );
                close(out, depth);
            }
        }
        value => field(out, name, value, Some(&kind), depth),
    }
}

/// Writes one value with its name.
fn field(out: &mut String, name: &str, value: &Value, kind: Option<&Kind>, depth: usize) {
    match value {
        Value::Message(body) => {
            open(out, name, depth);
            message(out, body, depth + 1);
            close(out, depth);
        }
        Value::String(text) => line(out, name, quote_text(text), depth),
        Value::Bytes(bytes) => line(out, name, quote_bytes(bytes), depth),
        Value::EnumNumber(number) => {
            let name_of = kind
                .and_then(Kind::as_enum)
                .and_then(|e| e.get_value(*number));
            match name_of {
                Some(value) => line(out, name, value.name(), depth),
                None => line(out, name, number, depth),
            }
        }
        Value::Bool(value) => line(out, name, value, depth),
        Value::I32(value) => line(out, name, value, depth),
        Value::I64(value) => line(out, name, value, depth),
        Value::U32(value) => line(out, name, value, depth),
        Value::U64(value) => line(out, name, value, depth),
        Value::F32(value) => line(out, name, value, depth),
        Value::F64(value) => line(out, name, value, depth),
        // Neither occurs within a value.
        Value::List(_) | Value::Map(_) => {}
    }
}

fn line(out: &mut String, name: &str, value: impl Display, depth: usize) {
    indent(out, depth);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{name}: {value}");
}

fn open(out: &mut String, name: &str, depth: usize) {
    indent(out, depth);
    out.push_str(name);
    out.push_str(" {\n");
}

fn close(out: &mut String, depth: usize) {
    indent(out, depth);
    out.push_str("}\n");
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Quotes text, whose printable characters stay as they are.
fn quote_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if c.is_ascii() || c.is_control() {
            let mut buffer = [0; 4];
            c.encode_utf8(&mut buffer)
                .bytes()
                .for_each(|b| escape(&mut out, b));
        } else {
            out.push(c);
        }
    }
    out.push('"');
    out
}

/// Quotes bytes in ASCII.
fn quote_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    bytes.iter().for_each(|&b| escape(&mut out, b));
    out.push('"');
    out
}

/// Writes one byte of a string.
fn escape(out: &mut String, byte: u8) {
    match byte {
        b'\n' => out.push_str("\\n"),
        b'\r' => out.push_str("\\r"),
        b'\t' => out.push_str("\\t"),
        b'"' => out.push_str("\\\""),
        b'\\' => out.push_str("\\\\"),
        b' '..=b'~' => out.push(char::from(byte)),
        // Three octal digits cannot swallow a digit that follows.
        _ => {
            let _ = write!(out, "\\{byte:03o}");
        }
    }
}
