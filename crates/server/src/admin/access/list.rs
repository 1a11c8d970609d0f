//! The access file: one caller to a line.
//!
//! ```text
//! # kind       name    SHA-256                 roles
//! token        alice   9f86d081884c7d65…       read,send,payload
//! certificate  backup  2c26b46b68ffc68f…       read
//! ```
//!
//! A token is known by the SHA-256 of its text, a certificate by that of its
//! public key (DER SubjectPublicKeyInfo); neither is a secret.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};

use super::{Caller, Role, Roles};

/// How many callers a file may have.
const MOST_CALLERS: usize = 1_000;

/// Who may call the admin interface, and what each of them may do.
#[derive(Clone, Default)]
pub struct AccessList {
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    kind: Kind,
    sha256: [u8; 32],
    caller: Caller,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Token,
    Certificate,
}

/// A line of an access file that cannot be used; it quotes no hash.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line}: {problem}; write `token NAME SHA256 ROLE,ROLE`, roles are read, send, broadcast, files, revoke, payload and all"
)]
pub struct AccessError {
    line: usize,
    problem: String,
}

impl AccessList {
    /// Reads the text of an access file.
    ///
    /// # Errors
    /// Names the first line that cannot be used.
    pub fn parse(text: &str) -> Result<Self, AccessError> {
        let mut list = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.is_empty() {
                continue;
            }
            let entry = list.entry(&fields).map_err(|problem| AccessError {
                line: index + 1,
                problem,
            })?;
            list.entries.push(entry);
        }
        Ok(list)
    }

    /// Returns whether nobody may call.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn entry(&self, fields: &[&str]) -> Result<Entry, String> {
        let [kind, name, sha256, roles] = fields else {
            return Err(format!("it has {} fields instead of 4", fields.len()));
        };
        let kind = match *kind {
            "token" => Kind::Token,
            "certificate" => Kind::Certificate,
            _ => return Err("it begins with neither `token` nor `certificate`".to_owned()),
        };
        let sha256 = unhex(sha256)
            .ok_or("the SHA-256 is not 64 hex digits; `printf %s TOKEN | sha256sum` makes it")?;
        if self.entries.len() >= MOST_CALLERS {
            return Err(format!("there are more than {MOST_CALLERS} callers"));
        }
        if self.entries.iter().any(|entry| entry.sha256 == sha256) {
            return Err("its SHA-256 is that of an earlier line".to_owned());
        }
        let roles = match *roles {
            "all" => Role::ALL.to_vec(),
            roles => roles
                .split(',')
                .map(|name| {
                    let role = Role::ALL.into_iter().find(|role| role.name() == name);
                    role.ok_or_else(|| "it names a role that does not exist".to_owned())
                })
                .collect::<Result<_, _>>()?,
        };
        Ok(Entry {
            kind,
            sha256,
            caller: Caller {
                name: (*name).into(),
                roles: Roles::Some(roles.into()),
            },
        })
    }

    /// Returns who has this token.
    pub(super) fn by_token(&self, token: &[u8]) -> Option<&Caller> {
        self.find(Kind::Token, token)
    }

    /// Returns who has this public key.
    pub(super) fn by_key(&self, key: &[u8]) -> Option<&Caller> {
        self.find(Kind::Certificate, key)
    }

    /// Compares with every entry in the same time, whichever of them matches.
    fn find(&self, kind: Kind, secret: &[u8]) -> Option<&Caller> {
        let sha256 = digest(&SHA256, secret);
        let mut found = None;
        for entry in self.entries.iter().filter(|entry| entry.kind == kind) {
            if verify_slices_are_equal(&entry.sha256, sha256.as_ref()).is_ok() {
                found = Some(&entry.caller);
            }
        }
        found
    }
}

impl fmt::Debug for AccessList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&Arc<str>> = self
            .entries
            .iter()
            .map(|entry| &entry.caller.name)
            .collect();
        f.debug_struct("AccessList")
            .field("callers", &names)
            .finish()
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        let digits = &text[2 * index..2 * index + 2];
        // The parser alone would take a sign.
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(bytes)
}
