//! The ledger in one SQLite file: WAL, `synchronous=FULL`, one writer.
//!
//! An operator holds the file by a lock on `<file>.lock` for as long as it runs; readers (exports,
//! `sqlite3`) may look at any time. Every commit is one `BEGIN IMMEDIATE` transaction whose statements
//! are few and take their rows as one JSON text each. After any error the writing connection is thrown
//! away: what state SQLite was left in is never guessed.

mod audit;
mod balances;
mod open;
mod policy;
mod retention;
mod usage;

pub use audit::{Export, check, export, export_between};

use super::store::{Books, Forgotten, Identity, Place, Store, StoreError};
use open::Opened;
use plimsoll_core::account::AccountKey;
use plimsoll_core::ids::UnixMs;
use plimsoll_core::ledger::{Rows, Touched};
use plimsoll_core::policy::{PolicyKey, PolicyObject};
use sqlx::{Connection, SqliteConnection};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use tokio::sync::Mutex;

/// A ledger in an SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    /// Absent after a failed commit; the next one opens another.
    writer: Mutex<Option<SqliteConnection>>,
    identity: Identity,
    latest: AtomicI64,
    /// The most pages that the file may have; 0: as many as the disk holds.
    max_pages: AtomicU64,
    /// The most decisions that [`Store::forget`] leaves.
    max_decisions: AtomicU64,
    /// Held until the store is dropped; the system lets go of it when the process dies.
    _lock: File,
}

/// How many decisions are kept by default.
pub const MAX_DECISIONS: u64 = 200_000;

impl SqliteStore {
    /// Opens the ledger in `path`, or makes a new one there.
    ///
    /// # Errors
    /// Another operator has the file, it is no ledger or a newer one, or it can't be read and written.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let lock = open::lock(&path)?;
        let Opened { connection, identity, latest } = open::first(&path).await?;
        Ok(Self {
            path,
            writer: Mutex::new(Some(connection)),
            identity,
            latest: AtomicI64::new(latest.0),
            max_pages: AtomicU64::new(0),
            max_decisions: AtomicU64::new(MAX_DECISIONS),
            _lock: lock,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bounds the file at `pages` of 4 KiB, from the next commit on: a full ledger is then met before a
    /// full disk. 0 lifts the bound.
    pub async fn set_max_pages(&self, pages: u64) {
        self.max_pages.store(pages, Relaxed);
        *self.writer.lock().await = None;
    }

    /// Bounds the decisions that [`Store::forget`] leaves; `u64::MAX` keeps all of the last 24 hours.
    pub fn set_max_decisions(&self, decisions: u64) {
        self.max_decisions.store(decisions, Relaxed);
    }

    /// Runs `work` on the writing connection. On an error the connection goes.
    async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => open::again(&self.path, self.max_pages.load(Relaxed)).await?,
        };
        let result = work(&mut connection).await;
        match &result {
            Ok(_) => *writer = Some(connection),
            // Closing may fail for the same reason; the error that counts is the first.
            Err(_) => drop(connection.close_hard().await),
        }
        result
    }
}

impl Store for SqliteStore {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn latest(&self) -> UnixMs {
        UnixMs(self.latest.load(Relaxed))
    }

    async fn commit<T: Send>(
        &self,
        touched: Touched,
        now: UnixMs,
        step: impl FnOnce(&mut Rows) -> T + Send,
    ) -> Result<T, StoreError> {
        self.write(async |connection| {
            let done = transact(connection, &self.path, touched, now, step).await?;
            self.latest.fetch_max(now.0, Relaxed);
            Ok(done)
        })
        .await
    }

    async fn probe(&self, now: UnixMs) -> Result<(), StoreError> {
        self.write(async |connection| {
            balances::save_now(connection, now).await.map_err(|error| open::explain(&self.path, error))
        })
        .await
    }

    async fn remembered(&self) -> Result<Vec<PolicyObject>, StoreError> {
        self.write(async |connection| policy::read(connection, &self.path).await).await
    }

    async fn remember(&self, changed: Vec<PolicyObject>, removed: Vec<PolicyKey>) -> Result<(), StoreError> {
        let failed = |error| open::explain(&self.path, error);
        self.write(async |connection| policy::save(connection, &changed, &removed).await.map_err(failed))
            .await
    }

    async fn books(&self) -> Result<Books, StoreError> {
        let path = &self.path;
        self.write(async |connection| {
            let mut transaction = connection.begin().await.map_err(|error| open::explain(path, error))?;
            let books = balances::books(&mut transaction, path).await?;
            transaction.rollback().await.map_err(|error| open::explain(path, error))?;
            Ok(books)
        })
        .await
    }

    async fn ended(&self, before: UnixMs, from: Place) -> Result<(BTreeSet<AccountKey>, Place), StoreError> {
        self.write(async |connection| retention::ended(connection, &self.path, before, from).await).await
    }

    async fn forget(&self, now: UnixMs) -> Result<Forgotten, StoreError> {
        let failed = |error| open::explain(&self.path, error);
        let keep = self.max_decisions.load(Relaxed);
        self.write(async |connection| {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            let forgotten = retention::forget(&mut transaction, now, keep).await.map_err(failed)?;
            transaction.commit().await.map_err(failed)?;
            Ok(forgotten)
        })
        .await
    }
}

/// One commit: reads the rows that `touched` names, steps, saves what changed.
async fn transact<T>(
    connection: &mut SqliteConnection,
    path: &Path,
    touched: Touched,
    now: UnixMs,
    step: impl FnOnce(&mut Rows) -> T,
) -> Result<T, StoreError> {
    let failed = |error| open::explain(path, error);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let mut rows = balances::read(&mut transaction, touched, path).await?;
    let before = rows.balances.clone();
    let done = step(&mut rows);
    if is_unchanged(&rows) {
        transaction.rollback().await.map_err(failed)?;
        return Ok(done);
    }
    balances::save(&mut transaction, &before, &rows).await.map_err(failed)?;
    usage::save(&mut transaction, &rows).await.map_err(failed)?;
    balances::save_now(&mut transaction, now).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(done)
}

/// Retires `gateway` by hand after the ledger went back: what it is known to hold is unaccounted, and nobody
/// waits for its Hello any more. The operator may run: it sees it at its next step. Returns how many of the
/// gateway's epochs ended; none where it has said Hello, or is not known.
///
/// # Errors
/// There is no such file, it is no ledger of this build, or it can't be written.
pub async fn retire(path: &Path, gateway: &str, now: UnixMs) -> Result<usize, StoreError> {
    let mut connection = open::beside(path).await?;
    let touched = Touched { all_of_gateways: [gateway.to_owned()].into(), ..Touched::default() };
    let ended = transact(&mut connection, path, touched, now, |rows| rows.retire(gateway)).await?;
    connection.close().await.map_err(|error| open::explain(path, error))?;
    Ok(ended)
}

fn is_unchanged(rows: &Rows) -> bool {
    let Rows { balances: _, epochs: _, changed_balances, changed_epochs, usage, observed: _, decisions } =
        rows;
    changed_balances.is_empty() && changed_epochs.is_empty() && usage.is_empty() && decisions.is_empty()
}

/// One JSON text for a statement's rows.
fn json(rows: &impl serde::Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(rows).map_err(|error| sqlx::Error::Encode(error.into()))
}
