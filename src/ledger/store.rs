//! What the ledger needs of a store: one commit, and a few reads.
//!
//! The store is the only authority. [`Store::commit`] reads rows, runs a pure step over them and saves
//! what the step changed, all in one transaction: whoever gets its `Ok` may answer, and nobody else.
//! SQLite stands in [`super::sqlite`].

use plimsoll_core::account::{AccountKey, Amount};
use plimsoll_core::ids::{Epoch, UnixMs};
use plimsoll_core::ledger::{Balance, EpochRecord, Rows, Touched};
use plimsoll_core::policy::{PolicyKey, PolicyObject};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};

/// Made once, at the store's first start.
#[derive(Clone)]
pub struct Identity {
    /// Names the installation: 128 random bits.
    pub installation: u128,
    /// The key that gateways hash user ids with. A secret: never shown.
    pub hmac_key: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({:032x})", self.installation)
    }
}

/// A place where balances, epochs, usage, decisions and the policy in force are kept.
pub trait Store: Send + Sync + 'static {
    /// Who we are.
    fn identity(&self) -> &Identity;

    /// Its file, as commands beside the operator are given it.
    fn path(&self) -> &Path;

    /// The latest `now` of any commit: the ledger's clock may not go back behind it.
    fn latest(&self) -> UnixMs;

    /// Reads the rows that `touched` names, in key order, runs `step` over them and saves what it
    /// changed, in one transaction. `now` is kept with it.
    ///
    /// # Errors
    /// Nothing is saved then, and what `step` returned is lost: the caller must forget what it did.
    fn commit<T: Send>(
        &self,
        touched: Touched,
        now: UnixMs,
        step: impl FnOnce(&mut Rows) -> T + Send,
    ) -> impl Future<Output = Result<T, StoreError>> + Send;

    /// Writes nothing but `now`: shows whether a store that failed can be written again.
    ///
    /// # Errors
    /// It can't.
    fn probe(&self, now: UnixMs) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The policy that was in force, as [`Store::remember`] was told.
    ///
    /// # Errors
    /// The store can't be read, or holds something that this build does not understand: to go on without it
    /// could lift a budget.
    fn remembered(&self) -> impl Future<Output = Result<Vec<PolicyObject>, StoreError>> + Send;

    /// From now on `changed` are in force, and `removed` are not.
    ///
    /// # Errors
    /// Nothing is remembered then.
    fn remember(
        &self,
        changed: Vec<PolicyObject>,
        removed: Vec<PolicyKey>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Every balance and every epoch that is not closed, at one instant.
    ///
    /// # Errors
    /// The store can't be read.
    fn books(&self) -> impl Future<Output = Result<Books, StoreError>> + Send;

    /// Of the next accounts after `from`, by the ends of their windows up to `before`, those that some epoch
    /// has a part in, and where to go on; the same place as `from` when there are no more.
    ///
    /// # Errors
    /// The store can't be read.
    fn ended(
        &self,
        before: UnixMs,
        from: Place,
    ) -> impl Future<Output = Result<(BTreeSet<AccountKey>, Place), StoreError>> + Send;

    /// Forgets what is older than its time: rows 35 days, buckets 800 days, balances 35 days after
    /// their window's end, decisions 24 h. So much at once that a commit does not wait for long.
    ///
    /// # Errors
    /// Nothing is forgotten then.
    fn forget(&self, now: UnixMs) -> impl Future<Output = Result<Forgotten, StoreError>> + Send;
}

/// What is held and spent at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Books {
    /// By account.
    pub balances: BTreeMap<AccountKey, Balance>,
    /// Those that are not closed.
    pub epochs: BTreeMap<Epoch, EpochRecord>,
}

/// How long a balance is kept after its window's end, in milliseconds: 35 days.
pub const BALANCES_KEPT_MS: i64 = 35 * 86_400_000;

/// How many of each were forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Usage rows.
    pub rows: u64,
    /// Buckets.
    pub buckets: u64,
    /// Balances.
    pub balances: u64,
    /// Decisions.
    pub decisions: u64,
    /// Whether there is more that is as old.
    pub more: bool,
}

/// A place in the order of accounts by the ends of their windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub(super) end: UnixMs,
    pub(super) account: i64,
}

impl Place {
    /// Before all.
    pub const FIRST: Self = Self { end: UnixMs(i64::MIN), account: i64::MIN };
}

/// A balance that its usage rows don't sum to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discrepancy {
    /// The account.
    pub account: AccountKey,
    /// What its balance says.
    pub settled: Amount,
    /// What its rows sum to.
    pub rows: Amount,
}

/// Why the store failed. The message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error(
        "ledger file {path} is in use by another operator ({holder}); an SQLite ledger serves one operator: stop the other, or give this one its own file"
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// Something else's file.
    #[error(
        "{path} is not a Plimsoll ledger (its application id is {found:#x}); set `ledger` to another path"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The application id in its header.
        found: i64,
    },
    /// A newer build wrote it.
    #[error("ledger file {path} has schema {found}, this build knows {known}; run the newer build")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// An older build wrote it, and no operator of this one has brought it up.
    #[error("ledger file {path} has schema {found}, this build writes {known}; start its operator first")]
    Older {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// No room.
    #[error("the disk of ledger file {path} is full; nothing is granted until there is room: {source}")]
    Full {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// It can't be written.
    #[error("ledger file {path} can't be written; check the volume and the file's owner: {source}")]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// It is damaged.
    #[error("ledger file {path} is damaged; restore a backup, and expect LedgerWentBack: {source}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// It can't be opened.
    #[error("ledger file {path} can't be opened: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A record that this build can't have written.
    #[error("ledger file {path} holds a record that this build can't read: {what}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Which.
        what: String,
    },
    /// The step panicked: a bug. Nothing was saved.
    #[error("the ledger's step failed on a bug, nothing was saved: {0}")]
    Bug(String),
    /// Anything else.
    #[error("ledger file {path}: {source}")]
    Other {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
}
