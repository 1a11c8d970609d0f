//! A statement and the types of its parameters.

use tokio_postgres::types::{ToSql, Type};

/// Static text, named after what runs it in its first line.
///
/// The types are stated here, so that a statement can be sent without asking
/// the server for them first.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) sql: &'static str,
    pub(crate) types: &'static [Type],
}

pub(crate) const BYTES: Type = Type::BYTEA;
pub(crate) const BYTES_LIST: Type = Type::BYTEA_ARRAY;
pub(crate) const LONG: Type = Type::INT8;
pub(crate) const LONG_LIST: Type = Type::INT8_ARRAY;
pub(crate) const INT: Type = Type::INT4;
pub(crate) const INT_LIST: Type = Type::INT4_ARRAY;
pub(crate) const REAL: Type = Type::FLOAT4;
pub(crate) const TEXT: Type = Type::TEXT;
pub(crate) const BOOL: Type = Type::BOOL;
pub(crate) const BOOL_LIST: Type = Type::BOOL_ARRAY;

/// The values of a statement's parameters.
pub(crate) type Values<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Returns the bytes of ids or texts, as a parameter of type [`BYTES_LIST`].
pub(crate) fn list<'a, T: AsRef<[u8]> + 'a>(
    items: impl IntoIterator<Item = &'a T>,
) -> Vec<&'a [u8]> {
    items.into_iter().map(AsRef::as_ref).collect()
}

/// Returns a number for `LIMIT`.
pub(crate) fn number(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
