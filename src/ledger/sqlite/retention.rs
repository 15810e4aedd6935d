//! What is forgotten, and when.

use super::{balances, open};
use crate::ledger::store::{BALANCES_KEPT_MS, Forgotten, Place, StoreError};
use plimsoll_core::account::AccountKey;
use plimsoll_core::ids::UnixMs;
use sqlx::SqliteConnection;
use std::collections::BTreeSet;
use std::path::Path;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const ROWS_MS: i64 = 35 * DAY_MS;
const BUCKETS_MS: i64 = 800 * DAY_MS;
const DECISIONS_MS: i64 = DAY_MS;
/// How long a lost epoch that holds nothing stays open.
const LOST_MS: i64 = 35 * DAY_MS;

/// The most usage rows, buckets, balances and names that one call takes away: a commit waits for no longer
/// than that. As the statements have it.
const AT_ONCE: u64 = 5_000;
/// The most accounts that are looked at for parts of ended windows in one call.
const LOOK_AT_ONCE: u32 = 1_000;

/// Which of the next accounts by the ends of their windows some epoch has a part in, and where to go on.
pub(super) async fn ended(
    connection: &mut SqliteConnection,
    path: &Path,
    before: UnixMs,
    from: Place,
) -> Result<(BTreeSet<AccountKey>, Place), StoreError> {
    let looked_at: Vec<(i64, i64, String, bool)> = sqlx::query_as(
        "SELECT ends, id, key, EXISTS (SELECT 1 FROM holding WHERE holding.account = account.id) FROM account
         WHERE (ends, id) > (?, ?) AND ends < ? ORDER BY ends, id LIMIT ?",
    )
    .bind(from.end.0)
    .bind(from.account)
    .bind(before.0)
    .bind(LOOK_AT_ONCE)
    .fetch_all(connection)
    .await
    .map_err(|error| open::explain(path, error))?;
    let next =
        looked_at.last().map_or(from, |(end, account, ..)| Place { end: UnixMs(*end), account: *account });
    let with_parts = looked_at.iter().filter(|(.., has_parts)| *has_parts);
    let accounts = with_parts.map(|(_, _, key, _)| balances::account(key, path)).collect::<Result<_, _>>()?;
    Ok((accounts, next))
}

/// Forgets in the caller's transaction; leaves `keep_decisions` decisions at most.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    now: UnixMs,
    keep_decisions: u64,
) -> Result<Forgotten, sqlx::Error> {
    let before = |age: i64| now.plus(-age).0;
    let mut run = async |statement: &'static str, bound: i64| -> Result<u64, sqlx::Error> {
        Ok(sqlx::query(statement).bind(bound).execute(&mut *connection).await?.rows_affected())
    };
    let rows = run(
        "DELETE FROM usage_row WHERE (epoch, sequence) IN
             (SELECT epoch, sequence FROM usage_row WHERE admitted_at < ? ORDER BY admitted_at LIMIT 5000)",
        before(ROWS_MS),
    )
    .await?;
    if rows > 0 {
        // From here on the rows of an account that is older no longer sum to its balance.
        run(
            "INSERT INTO setting (name, value) VALUES ('rows_since', ?)
             ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
            before(ROWS_MS),
        )
        .await?;
    }
    let buckets = run(
        "DELETE FROM bucket WHERE (quarter, dimension) IN
             (SELECT quarter, dimension FROM bucket WHERE quarter < ? ORDER BY quarter LIMIT 5000)",
        before(BUCKETS_MS),
    )
    .await?;
    if buckets > 0 {
        run("DELETE FROM dimension WHERE last < ?", before(BUCKETS_MS)).await?;
    }
    let ended = before(BALANCES_KEPT_MS);
    run(
        "DELETE FROM holding WHERE account IN
             (SELECT balance.account FROM account CROSS JOIN balance ON balance.account = account.id
              WHERE ends < ? ORDER BY ends, account.id LIMIT 5000)",
        ended,
    )
    .await?;
    let balances = run(
        "DELETE FROM balance WHERE account IN
             (SELECT balance.account FROM account CROSS JOIN balance ON balance.account = account.id
              WHERE ends < ? ORDER BY ends, account.id LIMIT 5000)",
        ended,
    )
    .await?;
    let mut names = 0;
    if rows < AT_ONCE {
        // Rows are admitted within their window, so those of a window that ended 35 days ago are gone;
        // a day more, for clocks.
        names = run(
            "DELETE FROM account WHERE id IN (SELECT id FROM account WHERE ends < ?
                 AND NOT EXISTS (SELECT 1 FROM balance WHERE balance.account = account.id)
                 ORDER BY ends LIMIT 5000)",
            ended - DAY_MS,
        )
        .await?;
    }
    // An epoch that is lost for longer than any row is kept, and holds nothing, has nothing to say that counts.
    // Open, it would be read with each commit, and waited for when the ledger goes back. One that is waited for
    // may hold what is not known here: it is left to people.
    run(
        "UPDATE epoch SET state = 2 WHERE state = 1 AND undeclared = 0 AND heard < ?
             AND NOT EXISTS (SELECT 1 FROM holding WHERE holding.epoch = epoch.id)",
        before(LOST_MS),
    )
    .await?;
    // A closed epoch is remembered longer than its rows: a gateway that comes back with it must be told.
    // One that is not closed is never forgotten.
    run(
        "DELETE FROM epoch WHERE state = 2 AND heard < ?
             AND NOT EXISTS (SELECT 1 FROM holding WHERE holding.epoch = epoch.id)
             AND NOT EXISTS (SELECT 1 FROM usage_row WHERE usage_row.epoch = epoch.id)",
        before(BUCKETS_MS),
    )
    .await?;
    let old = run("DELETE FROM decision WHERE answered_at < ?", before(DECISIONS_MS)).await?;
    let surplus = run(
        "DELETE FROM decision WHERE id <= (SELECT id FROM decision ORDER BY id DESC LIMIT 1 OFFSET ?)",
        i64::try_from(keep_decisions).unwrap_or(i64::MAX),
    )
    .await?;
    let more = [rows, buckets, balances, names].contains(&AT_ONCE);
    Ok(Forgotten { rows, buckets, balances, decisions: old + surplus, more })
}
