//! Balances and epochs: read before a step, saved after it.

use super::{json, open};
use crate::ledger::store::{Books, StoreError};
use plimsoll_core::account::{AccountKey, Amount};
use plimsoll_core::ids::{Epoch, UnixMs};
use plimsoll_core::ledger::{Balance, EpochRecord, EpochState, Held, Rows, Touched};
use plimsoll_core::window::WindowSpec;
use sqlx::SqliteConnection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rows that `touched` names.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    touched: Touched,
    path: &Path,
) -> Result<Rows, StoreError> {
    let failed = |error| open::explain(path, error);
    let Touched { accounts, epochs, all_of, all_of_gateways } = touched;
    let mut keys: BTreeSet<String> = accounts.iter().map(ToString::to_string).collect();
    if !all_of.is_empty() || !all_of_gateways.is_empty() {
        let more: Vec<String> = sqlx::query_scalar(
            "SELECT account.key FROM epoch
             JOIN holding ON holding.epoch = epoch.id
             JOIN account ON account.id = holding.account
             WHERE epoch.epoch IN (SELECT value FROM json_each(?1))
                OR (epoch.state < 2 AND epoch.gateway IN (SELECT value FROM json_each(?2)))",
        )
        .bind(json(&texts(&all_of)).map_err(failed)?)
        .bind(json(&all_of_gateways).map_err(failed)?)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
        keys.extend(more);
    }
    let keys = json(&keys).map_err(failed)?;
    let mut rows = Rows { epochs: read_epochs(connection, &epochs, path).await?, ..Rows::default() };
    if keys == "[]" {
        return Ok(rows);
    }
    let balances: Vec<BalanceRow> = sqlx::query_as(
        "SELECT account.key, settled, unaccounted, counted_since, would_refuse, overrun
         FROM json_each(?) AS wanted
         CROSS JOIN account ON account.key = wanted.value
         CROSS JOIN balance ON balance.account = account.id",
    )
    .bind(&keys)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    let holdings: Vec<HoldingRow> = sqlx::query_as(
        "SELECT account.key, epoch.epoch, granted, returned, settled
         FROM json_each(?) AS wanted
         CROSS JOIN account ON account.key = wanted.value
         CROSS JOIN holding ON holding.account = account.id
         CROSS JOIN epoch ON epoch.id = holding.epoch",
    )
    .bind(&keys)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    rows.balances = assemble(balances, holdings, path)?;
    Ok(rows)
}

/// Every balance, and every epoch that is not closed.
pub(super) async fn books(connection: &mut SqliteConnection, path: &Path) -> Result<Books, StoreError> {
    let failed = |error| open::explain(path, error);
    let balances: Vec<BalanceRow> = sqlx::query_as(
        "SELECT account.key, settled, unaccounted, counted_since, would_refuse, overrun
         FROM balance JOIN account ON account.id = balance.account",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    let holdings: Vec<HoldingRow> = sqlx::query_as(
        "SELECT account.key, epoch.epoch, granted, returned, settled FROM holding
         JOIN account ON account.id = holding.account
         JOIN epoch ON epoch.id = holding.epoch",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    let epochs = read_epochs(connection, &BTreeSet::new(), path).await?;
    Ok(Books { balances: assemble(balances, holdings, path)?, epochs })
}

type BalanceRow = (String, i64, i64, i64, i64, i64);
type HoldingRow = (String, String, i64, i64, i64);

fn assemble(
    balances: Vec<BalanceRow>,
    holdings: Vec<HoldingRow>,
    path: &Path,
) -> Result<BTreeMap<AccountKey, Balance>, StoreError> {
    let mut assembled = BTreeMap::new();
    for (key, settled, unaccounted, counted_since, would_refuse, overrun) in balances {
        let balance = Balance {
            settled: Amount(settled),
            unaccounted: Amount(unaccounted),
            counted_since: UnixMs(counted_since),
            would_refuse: would_refuse.cast_unsigned(),
            overrun: Amount(overrun),
            held: BTreeMap::new(),
        };
        assembled.insert(account(&key, path)?, balance);
    }
    for (key, text, granted, returned, settled) in holdings {
        let held = Held { granted: Amount(granted), returned: Amount(returned), settled: Amount(settled) };
        let balance = assembled.entry(account(&key, path)?).or_default();
        balance.held.insert(epoch(&text, path)?, held);
    }
    Ok(assembled)
}

async fn read_epochs(
    connection: &mut SqliteConnection,
    named: &BTreeSet<Epoch>,
    path: &Path,
) -> Result<BTreeMap<Epoch, EpochRecord>, StoreError> {
    let failed = |error| open::explain(path, error);
    let rows: Vec<(String, String, i64, i64, i64, bool)> = sqlx::query_as(
        "SELECT epoch, gateway, through, state, heard, undeclared FROM epoch WHERE state < 2
         UNION ALL
         SELECT epoch, gateway, through, state, heard, undeclared FROM epoch
         WHERE state = 2 AND epoch IN (SELECT value FROM json_each(?))",
    )
    .bind(json(&texts(named)).map_err(failed)?)
    .fetch_all(connection)
    .await
    .map_err(failed)?;
    let mut epochs = BTreeMap::new();
    for (text, gateway, through, state, heard, undeclared) in rows {
        let state = match state {
            0 => EpochState::Live,
            1 => EpochState::Lost,
            _ => EpochState::Closed,
        };
        let (through, heard) = (through.cast_unsigned(), UnixMs(heard));
        let record = EpochRecord { gateway, through, state, heard, undeclared };
        epochs.insert(epoch(&text, path)?, record);
    }
    Ok(epochs)
}

/// Saves what the step changed. `before` is what was read: holdings that are as they were stay alone.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    before: &BTreeMap<AccountKey, Balance>,
    rows: &Rows,
) -> Result<(), sqlx::Error> {
    save_epochs(connection, rows).await?;
    name_accounts(connection, &rows.changed_balances).await?;
    let mut balances = Vec::new();
    let mut holdings = Vec::new();
    let mut folded = Vec::new();
    for key in &rows.changed_balances {
        // A step never takes a balance away; `forget` does.
        let Some(balance) = rows.balances.get(key) else { continue };
        let Balance { settled, unaccounted, counted_since, would_refuse, overrun, held } = balance;
        let key_text = key.to_string();
        balances.push((
            key_text.clone(),
            settled,
            unaccounted,
            counted_since,
            would_refuse.cast_signed(),
            overrun,
        ));
        let held_before = before.get(key).map(|balance| &balance.held);
        for (epoch, part) in held {
            if held_before.and_then(|held| held.get(epoch)) != Some(part) {
                let Held { granted, returned, settled } = part;
                holdings.push((key_text.clone(), epoch.to_string(), granted, returned, settled));
            }
        }
        let gone = held_before.into_iter().flatten().filter(|(epoch, _)| !held.contains_key(epoch));
        folded.extend(gone.map(|(epoch, _)| (key_text.clone(), epoch.to_string())));
    }
    if !balances.is_empty() {
        sqlx::query(
            "INSERT INTO balance (account, settled, unaccounted, counted_since, would_refuse, overrun)
             SELECT account.id, value->>1, value->>2, value->>3, value->>4, value->>5
             FROM json_each(?) CROSS JOIN account ON account.key = value->>0 WHERE true
             ON CONFLICT (account) DO UPDATE SET settled = excluded.settled, unaccounted = excluded.unaccounted,
                 counted_since = excluded.counted_since, would_refuse = excluded.would_refuse, overrun = excluded.overrun",
        )
        .bind(json(&balances)?)
        .execute(&mut *connection)
        .await?;
    }
    if !holdings.is_empty() {
        sqlx::query(
            "INSERT INTO holding (account, epoch, granted, returned, settled)
             SELECT account.id, epoch.id, value->>2, value->>3, value->>4
             FROM json_each(?) CROSS JOIN account ON account.key = value->>0
             CROSS JOIN epoch ON epoch.epoch = value->>1 WHERE true
             ON CONFLICT (account, epoch) DO UPDATE SET granted = excluded.granted, returned = excluded.returned,
                 settled = excluded.settled",
        )
        .bind(json(&holdings)?)
        .execute(&mut *connection)
        .await?;
    }
    if !folded.is_empty() {
        sqlx::query(
            "DELETE FROM holding WHERE (account, epoch) IN (
                 SELECT account.id, epoch.id FROM json_each(?)
                 CROSS JOIN account ON account.key = value->>0 CROSS JOIN epoch ON epoch.epoch = value->>1)",
        )
        .bind(json(&folded)?)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn save_epochs(connection: &mut SqliteConnection, rows: &Rows) -> Result<(), sqlx::Error> {
    let changed = rows.changed_epochs.iter().filter_map(|epoch| rows.epochs.get_key_value(epoch));
    let changed: Vec<_> = changed
        .map(|(epoch, record)| {
            let EpochRecord { gateway, through, state, heard, undeclared } = record;
            let state = match state {
                EpochState::Live => 0,
                EpochState::Lost => 1,
                EpochState::Closed => 2,
            };
            (epoch.to_string(), gateway, through.cast_signed(), state, heard, i64::from(*undeclared))
        })
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO epoch (epoch, gateway, through, state, heard, undeclared)
         SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5 FROM json_each(?) WHERE true
         ON CONFLICT (epoch) DO UPDATE SET gateway = excluded.gateway, through = excluded.through,
             state = excluded.state, heard = excluded.heard, undeclared = excluded.undeclared",
    )
    .bind(json(&changed)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives each of `accounts` its number.
pub(super) async fn name_accounts(
    connection: &mut SqliteConnection,
    accounts: &BTreeSet<AccountKey>,
) -> Result<(), sqlx::Error> {
    if accounts.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = accounts.iter().map(|account| (account.to_string(), ends(account))).collect();
    sqlx::query(
        "INSERT INTO account (key, ends) SELECT value->>0, value->>1 FROM json_each(?) WHERE true
         ON CONFLICT (key) DO NOTHING",
    )
    .bind(json(&named)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// The ledger's clock goes on from here.
pub(super) async fn save_now(connection: &mut SqliteConnection, now: UnixMs) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO setting (name, value) VALUES ('now', ?)
         ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
    )
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// The end of an account's window. One that this build can't read is kept for ever.
fn ends(account: &AccountKey) -> UnixMs {
    account.limit.window.parse::<WindowSpec>().map_or(UnixMs::NEVER, |spec| spec.bounds(account.start).end)
}

fn texts(epochs: &BTreeSet<Epoch>) -> Vec<String> {
    epochs.iter().map(ToString::to_string).collect()
}

pub(super) fn account(key: &str, path: &Path) -> Result<AccountKey, StoreError> {
    let unreadable = |_| StoreError::Unreadable { path: path.to_owned(), what: format!("account \"{key}\"") };
    key.parse().map_err(unreadable)
}

pub(super) fn epoch(text: &str, path: &Path) -> Result<Epoch, StoreError> {
    let unreadable = |_| StoreError::Unreadable { path: path.to_owned(), what: format!("epoch \"{text}\"") };
    text.parse().map_err(unreadable)
}
