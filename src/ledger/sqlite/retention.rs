//! What is forgotten, and when.

use crate::ledger::store::Forgotten;
use plimsoll_core::ids::UnixMs;
use sqlx::SqliteConnection;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const ROWS_MS: i64 = 35 * DAY_MS;
const BUCKETS_MS: i64 = 800 * DAY_MS;
const BALANCES_MS: i64 = 35 * DAY_MS;
const DECISIONS_MS: i64 = DAY_MS;

/// The most usage rows and buckets that one call takes away: a commit waits for no longer than that.
pub const FORGET_AT_ONCE: u64 = 5_000;

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
    let ended = before(BALANCES_MS);
    run("DELETE FROM holding WHERE account IN (SELECT id FROM account WHERE ends < ?)", ended).await?;
    let balances =
        run("DELETE FROM balance WHERE account IN (SELECT id FROM account WHERE ends < ?)", ended).await?;
    if rows < FORGET_AT_ONCE {
        // Rows are admitted within their window, so those of a window that ended 35 days ago are gone;
        // a day more, for clocks.
        run("DELETE FROM account WHERE ends < ?", ended - DAY_MS).await?;
    }
    // A closed epoch is remembered longer than its rows: a gateway that comes back with it must be told.
    // One that is not closed is never forgotten, however silent.
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
    Ok(Forgotten { rows, buckets, balances, decisions: old + surplus })
}
