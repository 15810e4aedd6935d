//! Where objects come from: a directory of manifests, or an API server.
//!
//! A [`Source`] says what changed; it never plans. Everything after it (world, plan, apply, status) is
//! the same wherever the objects come from, so a laptop and a cluster behave alike.

pub mod files;
pub mod manifest;
mod watch;

pub use files::Files;

use plimsoll_api::{Object, ObjectId};
use std::fmt;
use std::future::Future;
use tokio::sync::mpsc;

/// What a source saw.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is there, new or changed.
    Put(Object),
    /// It is gone.
    Gone(ObjectId),
    /// Everything that is wrong now, in place of what was wrong before. The last good state of each
    /// object named here stays in force.
    Faults(Vec<Fault>),
}

/// Something that a source could not read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Fault {
    /// Where: `policy/budgets.yaml:12`.
    pub place: String,
    /// Which object, `AIBudget finance/all`, as far as it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Changes that belong together. The first batch of a source is everything there is.
pub type Batch = Vec<Change>;

/// A stream of changes.
pub trait Source {
    /// Sends batches until the other end is dropped; it waits while the other end is busy.
    ///
    /// # Errors
    /// It can't even begin. Once begun it reports what is wrong as [`Change::Faults`] and goes on.
    fn run(self, into: mpsc::Sender<Batch>) -> impl Future<Output = anyhow::Result<()>> + Send;
}
