//! Reading the file from outside: exports, and whether rows sum to balances. Never writes.

use super::{SqliteStore, balances, open};
use crate::ledger::store::{Discrepancy, StoreError};
use futures::TryStreamExt;
use plimsoll_core::account::{AccountKey, Amount, Charge, Unit};
use plimsoll_core::ids::{Epoch, ObjectName, UnixMs};
use plimsoll_core::ledger::Balance;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::{Caller, Decision, Outcome, UsageRow};
use plimsoll_core::usage::Usage;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

/// What a ledger file holds, at one instant.
#[derive(Clone, Debug, Default)]
pub struct Export {
    /// Usage rows by the instant of admission.
    pub rows: Vec<(Epoch, UsageRow)>,
    /// Decisions by the instant of the answer.
    pub decisions: Vec<(Epoch, Decision)>,
    /// Balances; of an epoch that holds something, `settled` stands in its part.
    pub balances: BTreeMap<AccountKey, Balance>,
}

/// Reads a ledger file whole, whether or not an operator runs on it.
///
/// # Errors
/// There is no such file, or it is no ledger.
pub async fn export(path: impl AsRef<Path>) -> Result<Export, StoreError> {
    export_between(path, UnixMs(i64::MIN)..UnixMs::NEVER).await
}

/// Reads the rows admitted and the decisions answered in `times`, and all balances.
///
/// # Errors
/// There is no such file, or it is no ledger.
pub async fn export_between(path: impl AsRef<Path>, times: Range<UnixMs>) -> Result<Export, StoreError> {
    let path = path.as_ref();
    let failed = |error| open::explain(path, error);
    let mut connection = open::reader(path).await?;
    let mut transaction = connection.begin().await.map_err(failed)?;
    let export = Export {
        rows: usage(&mut transaction, path, &times).await?,
        decisions: decisions(&mut transaction, path, &times).await?,
        balances: balances::books(&mut transaction, path).await?.balances,
    };
    transaction.rollback().await.map_err(failed)?;
    connection.close().await.map_err(failed)?;
    Ok(export)
}

impl SqliteStore {
    /// Whether the file is whole, and every balance is what its rows sum to. Balances that are older than
    /// the oldest row kept are not compared.
    ///
    /// # Errors
    /// The file is damaged, or can't be read.
    pub async fn check(&self) -> Result<Vec<Discrepancy>, StoreError> {
        check(self.path()).await
    }
}

/// As [`SqliteStore::check`], on a file that may be in use.
///
/// # Errors
/// The file is damaged, or can't be read.
pub async fn check(path: &Path) -> Result<Vec<Discrepancy>, StoreError> {
    let failed = |error| open::explain(path, error);
    let mut connection = open::reader(path).await?;
    let mut transaction = connection.begin().await.map_err(failed)?;
    let verdict: String =
        sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(&mut *transaction).await.map_err(failed)?;
    if verdict != "ok" {
        let source = sqlx::Error::Protocol(format!("integrity_check says: {verdict}"));
        return Err(StoreError::Corrupt { path: path.to_owned(), source });
    }
    let since: Option<i64> = sqlx::query_scalar("SELECT value FROM setting WHERE name = 'rows_since'")
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
    // In two halves each: SQLite's sum of integers fails where it is too large.
    let sums: Vec<(String, i64, i64, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT account.key, sum(usd >> 32), sum(usd & 4294967295), sum(tokens >> 32), sum(tokens & 4294967295),
             sum(requests >> 32), sum(requests & 4294967295) FROM (
             SELECT value AS account, usd, tokens, requests FROM usage_row, json_each(accounts)
             UNION ALL
             SELECT value, usd, tokens, requests FROM usage_row, json_each(observed_accounts)
         ) AS part JOIN account ON account.id = part.account GROUP BY account.key",
    )
    .fetch_all(&mut *transaction)
    .await
    .map_err(failed)?;
    let books = balances::books(&mut transaction, path).await?;
    transaction.rollback().await.map_err(failed)?;
    let mut summed = BTreeMap::new();
    for (key, usd_high, usd_low, tokens_high, tokens_low, requests_high, requests_low) in sums {
        let account = balances::account(&key, path)?;
        let (high, low) = match account.limit.unit {
            Unit::Usd => (usd_high, usd_low),
            Unit::Tokens => (tokens_high, tokens_low),
            Unit::Requests => (requests_high, requests_low),
        };
        // As a balance, it stops at the largest.
        let sum = (i128::from(high) << 32) + i128::from(low);
        summed.insert(account, Amount(i64::try_from(sum).unwrap_or(i64::MAX)));
    }
    let mut found = Vec::new();
    for (account, balance) in books.balances {
        let rows = summed.remove(&account).unwrap_or_default();
        let settled = balance.standing(&books.epochs).settled;
        if rows != settled && since.is_none_or(|since| balance.counted_since.0 >= since) {
            found.push(Discrepancy { account, settled, rows });
        }
    }
    // Rows of an account without any balance.
    let unheld = summed.into_iter().filter(|(_, rows)| *rows != Amount::ZERO && since.is_none());
    found.extend(unheld.map(|(account, rows)| Discrepancy { account, settled: Amount::ZERO, rows }));
    Ok(found)
}

async fn usage(
    connection: &mut SqliteConnection,
    path: &Path,
    times: &Range<UnixMs>,
) -> Result<Vec<(Epoch, UsageRow)>, StoreError> {
    let failed = |error| open::explain(path, error);
    let named: Vec<(i64, String)> =
        sqlx::query_as("SELECT id, key FROM account").fetch_all(&mut *connection).await.map_err(failed)?;
    let mut accounts = HashMap::new();
    for (id, key) in named {
        accounts.insert(id, balances::account(&key, path)?);
    }
    let mut stream = sqlx::query(
        "SELECT epoch.epoch AS epoch_text, usage_row.*, dimension.* FROM usage_row
         JOIN epoch ON epoch.id = usage_row.epoch
         JOIN dimension ON dimension.id = usage_row.dimension
         WHERE admitted_at >= ? AND admitted_at < ? ORDER BY admitted_at, usage_row.epoch, sequence",
    )
    .bind(times.start.0)
    .bind(times.end.0)
    .fetch(&mut *connection);
    let mut rows = Vec::new();
    while let Some(row) = stream.try_next().await.map_err(failed)? {
        let epoch_text: String = row.try_get("epoch_text").map_err(failed)?;
        let usage = usage_row(&row, &accounts).map_err(failed)?;
        rows.push((balances::epoch(&epoch_text, path)?, usage));
    }
    Ok(rows)
}

fn usage_row(row: &SqliteRow, accounts: &HashMap<i64, AccountKey>) -> Result<UsageRow, sqlx::Error> {
    let text = |name: &str| row.try_get::<String, _>(name);
    let number = |name: &str| row.try_get::<i64, _>(name);
    let count = |name: &str| number(name).map(i64::cast_unsigned);
    let at = |name: &str| number(name).map(UnixMs);
    let ids: Vec<i64> = parse(&text("accounts")?)?;
    let outcome = match number("outcome")? {
        0 => Outcome::Completed,
        1 => Outcome::UsageMissing,
        2 => Outcome::ProviderError,
        3 => Outcome::Abandoned,
        _ => Outcome::Replayed,
    };
    Ok(UsageRow {
        sequence: count("sequence")?,
        settled_sequence: count("settled_sequence")?,
        request_id: text("request_id")?,
        attempt: row.try_get("attempt")?,
        paused_at: at("paused_at")?,
        admitted_at: at("admitted_at")?,
        settled_at: at("settled_at")?,
        accounts: ids.iter().filter_map(|id| accounts.get(id).cloned()).collect(),
        observed: parse(&text("observed")?)?,
        caller: Caller {
            namespace: text("namespace")?,
            feature: text("feature")?,
            customer: text("customer")?,
            user_hash: text("user_hash")?,
            service_account: text("service_account")?,
            session: text("session")?,
        },
        route: text("route")?,
        tier: text("tier")?,
        backend: ObjectName::try_from(text("backend")?).map_err(|what| sqlx::Error::Decode(what.into()))?,
        model: text("model")?,
        usage: Usage {
            input: count("input")?,
            cached_input: count("cached_input")?,
            cache_write: count("cache_write")?,
            output: count("output")?,
            reasoning: count("reasoning")?,
        },
        charge: Charge {
            usd: NanoUsd(number("usd")?),
            tokens: count("tokens")?,
            requests: count("requests")?,
        },
        reserve: reserve(row)?,
        best_tier_cost: NanoUsd(number("best_tier_usd")?),
        price_version: PriceVersion(count("price_version")?),
        outcome,
    })
}

fn reserve(row: &SqliteRow) -> Result<Charge, sqlx::Error> {
    Ok(Charge {
        usd: NanoUsd(row.try_get("reserved_usd")?),
        tokens: row.try_get::<i64, _>("reserved_tokens")?.cast_unsigned(),
        requests: row.try_get::<i64, _>("reserved_requests")?.cast_unsigned(),
    })
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

async fn decisions(
    connection: &mut SqliteConnection,
    path: &Path,
    times: &Range<UnixMs>,
) -> Result<Vec<(Epoch, Decision)>, StoreError> {
    let failed = |error| open::explain(path, error);
    let mut stream = sqlx::query(
        "SELECT * FROM decision WHERE answered_at >= ? AND answered_at < ? ORDER BY answered_at, id",
    )
    .bind(times.start.0)
    .bind(times.end.0)
    .fetch(&mut *connection);
    let mut decisions = Vec::new();
    while let Some(row) = stream.try_next().await.map_err(failed)? {
        let text = |name: &str| row.try_get::<String, _>(name).map_err(failed);
        let at = |name: &str| row.try_get::<i64, _>(name).map(UnixMs).map_err(failed);
        let account: Option<String> = row.try_get("account").map_err(failed)?;
        let keys: Vec<String> = parse(&text("accounts")?).map_err(failed)?;
        let decision = Decision {
            request_id: text("request_id")?,
            account: account.map(|key| balances::account(&key, path)).transpose()?,
            accounts: keys.iter().map(|key| balances::account(key, path)).collect::<Result<_, _>>()?,
            stage: text("stage")?,
            reason: text("reason")?,
            reserve: reserve(&row).map_err(failed)?,
            paused_at: at("paused_at")?,
            answered_at: at("answered_at")?,
        };
        decisions.push((balances::epoch(&text("epoch")?, path)?, decision));
    }
    Ok(decisions)
}
