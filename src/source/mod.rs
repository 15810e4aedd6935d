//! Where objects come from: a directory of manifests, or an API server.
//!
//! A [`Source`] says what changed; it never plans. Everything after it (world, plan, apply, status) is
//! the same wherever the objects come from, so a laptop and a cluster behave alike.

pub mod files;
pub mod lines;
pub mod manifest;
mod watch;

pub use files::Files;

use plimsoll_api::{Object, ObjectId};
use plimsoll_plan::Settings;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What a source saw.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is there, new or changed.
    Put(Object),
    /// It is gone.
    Gone(ObjectId),
    /// Everything there is has been told by now. Said once, as soon as nothing is left that can't be read:
    /// until then, that nobody tells of an object doesn't say that it is gone.
    Whole,
    /// Everything that is wrong now, in place of what was wrong before. The last good state of each
    /// object named here stays in force.
    Faults(Vec<Fault>),
    /// The Secrets of `namespace` can't be read, and why; `None`: they can. What was read of them before
    /// stays in force.
    SecretsDenied {
        /// Of these Secrets.
        namespace: String,
        /// Which right is missing, and what to do.
        why: Option<String>,
    },
    /// Nothing can be told yet, and what is in the way: alone in its batch, and only before the first.
    Waiting(Vec<Fault>),
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

/// Changes that belong together. The first batch of a source, [`Change::Waiting`] apart, is everything that
/// can be read; where that is everything there is, [`Change::Whole`] is in it.
pub type Batch = Vec<Change>;

/// Where a source has an object: `policy/budgets.yaml:12`.
type Lookup = dyn Fn(&ObjectId) -> Option<String> + Send + Sync;

/// Where objects stand, for people who are to mend them.
#[derive(Clone, Default)]
pub struct Places(Option<Arc<Lookup>>);

impl Places {
    /// Those that `lookup` knows.
    pub fn new(lookup: impl Fn(&ObjectId) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(lookup)))
    }

    /// Where `id` stands now; an object of an API server stands under its own name alone.
    #[must_use]
    pub fn of(&self, id: &ObjectId) -> Option<String> {
        self.0.as_ref().and_then(|lookup| lookup(id))
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Places(…)")
    }
}

/// A stream of changes.
pub trait Source {
    /// Where its objects stand, at any time from now on.
    fn places(&self) -> Places {
        Places::default()
    }

    /// Sends batches until the other end is dropped; it waits while the other end is busy. `settings` say
    /// which namespaces' Secrets may be read.
    ///
    /// # Errors
    /// It can't even begin. Once begun it reports what is wrong as [`Change::Faults`] and goes on.
    fn run(
        self,
        into: mpsc::Sender<Batch>,
        settings: tokio::sync::watch::Receiver<Settings>,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Every file of `directory` that a directory of manifests is read from, in order.
///
/// # Errors
/// The directory can't be read.
pub fn files_below(directory: &std::path::Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    watch::files_below(directory).map(|files| files.into_keys().collect())
}
