//! Opening the file: the lock, the schema's version, the identity, and what SQLite's errors mean.

use crate::ledger::store::{Identity, StoreError};
use crate::random;
use plimsoll_core::ids::UnixMs;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use std::cmp::Ordering;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Schemas by version, each on top of the one before. Never change one that was released.
const SCHEMAS: [&str; 3] =
    [include_str!("schema-1.sql"), include_str!("schema-2.sql"), include_str!("schema-3.sql")];

/// "PLIM", in the header of every ledger file.
const APPLICATION: i64 = 0x504c_494d;

pub(super) struct Opened {
    pub connection: SqliteConnection,
    pub identity: Identity,
    pub latest: UnixMs,
}

/// Takes the file for this process. The lock is on a file beside it: SQLite's own locks belong to the
/// process, and whoever opens and closes the file itself would lose them.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name: OsString = path.into();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let cannot = |source| StoreError::Open { path: lock_path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message; whoever wrote it may be about to.
            let _ = file.take(64).read_to_string(&mut holder);
            return Err(StoreError::InUse { path: path.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(cannot(source)),
    }
    let holder = format!("process {}\n", std::process::id());
    let written = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| file.write_all(holder.as_bytes()));
    // A full disk must not keep the operator from starting: it can say so only when it runs.
    if let Err(error) = written {
        tracing::warn!(path = %lock_path.display(), %error, "the lock's holder could not be noted");
    }
    Ok(file)
}

/// Opens the file at start: makes or brings up its schema, reads who we are.
pub(super) async fn first(path: &Path) -> Result<Opened, StoreError> {
    let mut connection = again(path, 0).await?;
    let failed = |error| explain(path, error);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let number = |text| sqlx::query_scalar::<_, i64>(text);
    let application = number("PRAGMA application_id").fetch_one(&mut *transaction).await.map_err(failed)?;
    let found = number("PRAGMA user_version").fetch_one(&mut *transaction).await.map_err(failed)?;
    let tables =
        number("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *transaction).await.map_err(failed)?;
    if application != APPLICATION && tables > 0 {
        return Err(StoreError::Foreign { path: path.to_owned(), found: application });
    }
    let known = i64::try_from(SCHEMAS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for schema in SCHEMAS.iter().skip(done) {
        sqlx::raw_sql(*schema).execute(&mut *transaction).await.map_err(failed)?;
    }
    if found < known {
        let version = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {known}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(version)).execute(&mut *transaction).await.map_err(failed)?;
    }
    let identity = identity(&mut transaction, path).await?;
    let latest: Option<i64> = sqlx::query_scalar("SELECT value FROM setting WHERE name = 'now'")
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(Opened { connection, identity, latest: UnixMs(latest.unwrap_or_default()) })
}

/// Opens a writing connection to a file that is ours already.
pub(super) async fn again(path: &Path, max_pages: u64) -> Result<SqliteConnection, StoreError> {
    let mut options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(true)
        // The log is cut back to this after a checkpoint.
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging();
    if max_pages > 0 {
        options = options.pragma("max_page_count", max_pages.to_string());
    }
    options.connect().await.map_err(|error| explain(path, error))
}

/// Opens a writing connection to a ledger that an operator of this build has made, and may be running on.
pub(super) async fn beside(path: &Path) -> Result<SqliteConnection, StoreError> {
    let failed = |error| explain(path, error);
    // It makes no file where there is none.
    let mut reader = reader(path).await?;
    let number = |text| sqlx::query_scalar::<_, i64>(text);
    let application = number("PRAGMA application_id").fetch_one(&mut reader).await.map_err(failed)?;
    let found = number("PRAGMA user_version").fetch_one(&mut reader).await.map_err(failed)?;
    reader.close().await.map_err(failed)?;
    let known = i64::try_from(SCHEMAS.len()).unwrap_or(i64::MAX);
    if application != APPLICATION {
        return Err(StoreError::Foreign { path: path.to_owned(), found: application });
    }
    match found.cmp(&known) {
        Ordering::Equal => again(path, 0).await,
        Ordering::Greater => Err(StoreError::Newer { path: path.to_owned(), found, known }),
        Ordering::Less => Err(StoreError::Older { path: path.to_owned(), found, known }),
    }
}

/// Opens a connection that only reads.
pub(super) async fn reader(path: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging();
    options.connect().await.map_err(|error| explain(path, error))
}

async fn identity(connection: &mut SqliteConnection, path: &Path) -> Result<Identity, StoreError> {
    let failed = |error| explain(path, error);
    let none = |source| StoreError::Open { path: path.to_owned(), source };
    let id = random::bytes::<16>().map_err(none)?.to_vec();
    let key = random::bytes::<32>().map_err(none)?.to_vec();
    for (name, bytes) in [("installation", id), ("hmac_key", key)] {
        sqlx::query("INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(bytes)
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
    }
    let installation = setting::<16>(connection, path, "installation").await?;
    let hmac_key = setting::<32>(connection, path, "hmac_key").await?;
    Ok(Identity { installation: u128::from_be_bytes(installation), hmac_key })
}

async fn setting<const N: usize>(
    connection: &mut SqliteConnection,
    path: &Path,
    name: &'static str,
) -> Result<[u8; N], StoreError> {
    let bytes: Vec<u8> = sqlx::query_scalar("SELECT value FROM setting WHERE name = ?")
        .bind(name)
        .fetch_one(connection)
        .await
        .map_err(|error| explain(path, error))?;
    let unreadable = |_| StoreError::Unreadable { path: path.to_owned(), what: format!("setting {name}") };
    bytes.try_into().map_err(unreadable)
}

/// What an error of SQLite means for the operator.
pub(super) fn explain(path: &Path, source: sqlx::Error) -> StoreError {
    let path = path.to_owned();
    let code = match &source {
        sqlx::Error::Database(error) => error.code().and_then(|code| code.parse::<u32>().ok()),
        _ => None,
    };
    // The low byte is the primary code: https://www.sqlite.org/rescode.html
    match code.map(|code| (code & 0xff, code)) {
        // SQLITE_FULL; and no room to grow the shared memory.
        Some((13, _) | (_, 4874)) => StoreError::Full { path, source },
        // SQLITE_PERM, SQLITE_READONLY, SQLITE_CANTOPEN.
        Some((3 | 8 | 14, _)) => StoreError::ReadOnly { path, source },
        // SQLITE_CORRUPT, SQLITE_NOTADB.
        Some((11 | 26, _)) => StoreError::Corrupt { path, source },
        _ => StoreError::Other { path, source },
    }
}
