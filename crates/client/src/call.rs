//! The routes, so that an error can say what was called.

use std::fmt;

use hyper::Method;

/// One route of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// `POST /create`
    Create,
    /// `POST /exec`
    Exec,
    /// `POST /destroy`
    Destroy,
    /// `POST /snapshot/create`
    SnapshotCreate,
    /// `POST /snapshot/restore`
    SnapshotRestore,
    /// `POST /snapshot/delete`
    SnapshotDelete,
    /// `GET /snapshot/list`
    Snapshots,
    /// `GET /sandboxes`
    Sandboxes,
    /// `GET /healthz`
    Health,
}

impl Call {
    /// Where it goes, from the root of the server.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Create => "/create",
            Self::Exec => "/exec",
            Self::Destroy => "/destroy",
            Self::SnapshotCreate => "/snapshot/create",
            Self::SnapshotRestore => "/snapshot/restore",
            Self::SnapshotDelete => "/snapshot/delete",
            Self::Snapshots => "/snapshot/list",
            Self::Sandboxes => "/sandboxes",
            Self::Health => "/healthz",
        }
    }

    pub(crate) fn method(self) -> Method {
        match self {
            Self::Create
            | Self::Exec
            | Self::Destroy
            | Self::SnapshotCreate
            | Self::SnapshotRestore
            | Self::SnapshotDelete => Method::POST,
            Self::Snapshots | Self::Sandboxes | Self::Health => Method::GET,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method(), self.path())
    }
}
