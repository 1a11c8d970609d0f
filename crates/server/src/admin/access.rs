//! Who may call what: roles, the file that gives them, and the check before
//! every call (protocol specification section 4.1).

mod check;
mod list;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};

pub(super) use check::Checked;
pub use list::{AccessError, AccessList};

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See clients, contacts, what is pending and what became of messages, but no payloads.
    Read,
    /// Send messages and remove pending ones.
    Send,
    /// Create and end broadcasts.
    Broadcast,
    /// Store and delete files.
    Files,
    /// Blacklist clients.
    Revoke,
    /// See payloads.
    Payload,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Send,
        Self::Broadcast,
        Self::Files,
        Self::Revoke,
        Self::Payload,
    ];

    /// Returns the role's name in an access file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Send => "send",
            Self::Broadcast => "broadcast",
            Self::Files => "files",
            Self::Revoke => "revoke",
            Self::Payload => "payload",
        }
    }
}

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: it tells and changes nothing.
    Nobody,
    /// To be in the access file.
    Anybody,
    One(Role),
}

/// Returns what the method at a path asks of its caller; `None` if there is no such method.
pub(super) fn need(path: &str) -> Option<Need> {
    if path == "/fleethold.admin.v1.Broadcasts/GetBroadcastProgress" {
        return Some(Need::One(Role::Read));
    }
    let need = match path.strip_prefix("/fleetspeak.server.Admin/") {
        Some("KeepAlive") => Need::Anybody,
        Some(
            "GetMessageStatus"
            | "GetPendingMessages"
            | "GetPendingMessageCount"
            | "ListClients"
            | "StreamClientIds"
            | "ListClientContacts"
            | "StreamClientContacts"
            | "FetchClientResourceUsageRecords"
            | "ListActiveBroadcasts",
        ) => Need::One(Role::Read),
        Some("InsertMessage" | "DeletePendingMessages") => Need::One(Role::Send),
        Some("CreateBroadcast" | "DisableBroadcasts") => Need::One(Role::Broadcast),
        Some("StoreFile" | "DeleteFile") => Need::One(Role::Files),
        Some("BlacklistClient") => Need::One(Role::Revoke),
        Some(_) => return None,
        None if path.starts_with("/grpc.health.v1.Health/") => Need::Nobody,
        None if path.starts_with("/grpc.reflection.") => Need::Anybody,
        None => return None,
    };
    Some(need)
}

/// Who makes a call.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The name in the access file.
    pub(super) name: Arc<str>,
    roles: Roles,
}

#[derive(Clone, Debug)]
enum Roles {
    All,
    Some(Arc<[Role]>),
}

impl Caller {
    /// Whoever reaches an interface that asks nobody who they are.
    pub(super) fn anybody() -> Self {
        Self {
            name: "anybody".into(),
            roles: Roles::All,
        }
    }

    pub(super) fn has(&self, role: Role) -> bool {
        match &self.roles {
            Roles::All => true,
            Roles::Some(roles) => roles.contains(&role),
        }
    }

    fn may(&self, need: Need) -> bool {
        match need {
            Need::Nobody | Need::Anybody => true,
            Need::One(role) => self.has(role),
        }
    }
}

/// The access list of a running server, which can be replaced.
///
/// Without a list everybody may do everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access(Arc<RwLock<Option<Arc<AccessList>>>>);

impl Access {
    pub(crate) fn new(list: Option<AccessList>) -> Self {
        Self(Arc::new(RwLock::new(list.map(Arc::new))))
    }

    /// Replaces the list; calls under way go on.
    pub(crate) fn replace(&self, list: AccessList) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(list));
    }

    fn list(&self) -> Option<Arc<AccessList>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
