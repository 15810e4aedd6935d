//! Usage rows, their buckets, and decisions: written with the balances that they move.

use super::{balances, json};
use plimsoll_core::account::{AccountKey, Charge};
use plimsoll_core::ids::{Epoch, ObjectName};
use plimsoll_core::ledger::Rows;
use plimsoll_core::protocol::{Caller, Decision, Outcome, UsageRow};
use plimsoll_core::usage::Usage;
use serde::Serialize;
use sqlx::query_builder::Separated;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A quarter of an hour in milliseconds.
const QUARTER_MS: i64 = 15 * 60 * 1_000;

/// Inserts rows, moves their buckets, inserts decisions. A row that is stored already changes nothing.
pub(super) async fn save(connection: &mut SqliteConnection, rows: &Rows) -> Result<(), sqlx::Error> {
    if !rows.usage.is_empty() {
        let (numbers, new) = insert(connection, rows).await?;
        move_buckets(connection, rows, &numbers, &new).await?;
    }
    if !rows.decisions.is_empty() {
        insert_decisions(connection, &rows.decisions).await?;
    }
    Ok(())
}

/// Who called what: the names that a row and its bucket share.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Dimension<'a>(&'a str, &'a str, &'a str, &'a str, &'a str, &'a str, &'a str, &'a ObjectName, &'a str);

fn dimension(row: &UsageRow) -> Dimension<'_> {
    let Caller { namespace, feature, customer, user_hash, service_account, session: _ } = &row.caller;
    Dimension(
        namespace,
        feature,
        customer,
        user_hash,
        service_account,
        &row.route,
        &row.tier,
        &row.backend,
        &row.model,
    )
}

/// The first instant of the quarter hour in which it was admitted.
fn quarter(row: &UsageRow) -> i64 {
    row.admitted_at.0.div_euclid(QUARTER_MS).saturating_mul(QUARTER_MS)
}

/// Rows in one statement: 26 columns each.
const ROWS_AT_ONCE: usize = 32;

/// The numbers that name what a row's texts say.
struct Numbers<'a> {
    epochs: HashMap<String, i64>,
    accounts: HashMap<String, i64>,
    dimensions: BTreeMap<Dimension<'a>, i64>,
}

impl Numbers<'_> {
    /// As JSON; every account of the batch has its number.
    fn of(&self, accounts: &[AccountKey]) -> Result<String, sqlx::Error> {
        let numbers: Vec<i64> =
            accounts.iter().filter_map(|account| self.accounts.get(&account.to_string()).copied()).collect();
        json(&numbers)
    }
}

/// Inserts the rows; returns the epochs' numbers and the rows (by those and their sequence) that were new.
async fn insert<'a>(
    connection: &mut SqliteConnection,
    rows: &'a Rows,
) -> Result<(Numbers<'a>, HashSet<(i64, i64)>), sqlx::Error> {
    let numbers = number(connection, rows).await?;
    let mut new = HashSet::new();
    for chunk in rows.usage.chunks(ROWS_AT_ONCE) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO usage_row (epoch, sequence, settled_sequence, request_id, attempt, paused_at, admitted_at,
                 settled_at, accounts, observed, observed_accounts, dimension, session, input, cached_input,
                 cache_write, output, reasoning, usd, tokens, requests, reserved_usd, reserved_tokens,
                 reserved_requests, best_tier_usd, price_version, outcome) ",
        );
        let mut texts = Vec::new();
        for (epoch, row) in chunk {
            let observed = rows.observed.get(&(*epoch, row.sequence)).map_or(&[][..], Vec::as_slice);
            texts.push((numbers.of(&row.accounts)?, json(&row.observed)?, numbers.of(observed)?));
        }
        statement.push_values(chunk.iter().zip(texts), |mut columns, ((epoch, row), texts)| {
            bind(&mut columns, *epoch, row, texts, &numbers);
        });
        statement.push(" ON CONFLICT (epoch, sequence) DO NOTHING RETURNING epoch, sequence");
        let inserted: Vec<(i64, i64)> = statement.build_query_as().fetch_all(&mut *connection).await?;
        new.extend(inserted);
    }
    Ok((numbers, new))
}

fn bind(
    columns: &mut Separated<'_, Sqlite, &'static str>,
    epoch: Epoch,
    row: &UsageRow,
    (accounts, observed, observed_accounts): (String, String, String),
    numbers: &Numbers,
) {
    let UsageRow {
        sequence,
        settled_sequence,
        request_id,
        attempt,
        paused_at,
        admitted_at,
        settled_at,
        accounts: _,
        observed: _,
        caller,
        route: _,
        tier: _,
        backend: _,
        model: _,
        usage: Usage { input, cached_input, cache_write, output, reasoning },
        charge,
        reserve,
        best_tier_cost,
        price_version,
        outcome,
    } = row;
    // Absent is NULL, and refused by the schema: the commit fails rather than losing a name.
    columns.push_bind(numbers.epochs.get(&epoch.to_string()).copied());
    columns.push_bind(count(*sequence)).push_bind(count(*settled_sequence));
    columns.push_bind(request_id.clone()).push_bind(*attempt);
    columns.push_bind(paused_at.0).push_bind(admitted_at.0).push_bind(settled_at.0);
    columns.push_bind(accounts).push_bind(observed).push_bind(observed_accounts);
    columns.push_bind(numbers.dimensions.get(&dimension(row)).copied());
    columns.push_bind(caller.session.clone());
    for tokens in [input, cached_input, cache_write, output, reasoning] {
        columns.push_bind(count(*tokens));
    }
    for Charge { usd, tokens, requests } in [charge, reserve] {
        columns.push_bind(usd.0).push_bind(count(*tokens)).push_bind(count(*requests));
    }
    columns.push_bind(best_tier_cost.0).push_bind(price_version.0.cast_signed());
    columns.push_bind(match outcome {
        Outcome::Completed => 0,
        Outcome::UsageMissing => 1,
        Outcome::ProviderError => 2,
        Outcome::Abandoned => 3,
        Outcome::Replayed => 4,
    });
}

/// Gives each account and dimension of the batch its number, and looks all numbers up.
async fn number<'a>(connection: &mut SqliteConnection, rows: &'a Rows) -> Result<Numbers<'a>, sqlx::Error> {
    let accounts: BTreeSet<AccountKey> = rows
        .usage
        .iter()
        .flat_map(|(_, row)| &row.accounts)
        .chain(rows.observed.values().flatten())
        .cloned()
        .collect();
    balances::name_accounts(connection, &accounts).await?;
    let accounts: BTreeSet<String> = accounts.iter().map(ToString::to_string).collect();
    let accounts: Vec<(String, i64)> = sqlx::query_as(
        "SELECT account.key, account.id FROM json_each(?) CROSS JOIN account ON account.key = value",
    )
    .bind(json(&accounts)?)
    .fetch_all(&mut *connection)
    .await?;
    let epochs: BTreeSet<String> = rows.usage.iter().map(|(epoch, _)| epoch.to_string()).collect();
    let epochs: Vec<(String, i64)> =
        sqlx::query_as("SELECT epoch, epoch.id FROM json_each(?) CROSS JOIN epoch ON epoch.epoch = value")
            .bind(json(&epochs)?)
            .fetch_all(&mut *connection)
            .await?;
    let mut last: BTreeMap<Dimension, i64> = BTreeMap::new();
    for (_, row) in &rows.usage {
        let last = last.entry(dimension(row)).or_insert(i64::MIN);
        *last = quarter(row).max(*last);
    }
    let last: Vec<(Dimension, i64)> = last.into_iter().collect();
    let texts = json(&last)?;
    sqlx::query(
        "INSERT INTO dimension
             (namespace, feature, customer, user_hash, service_account, route, tier, backend, model, last)
         SELECT value->0->>0, value->0->>1, value->0->>2, value->0->>3, value->0->>4, value->0->>5, value->0->>6,
             value->0->>7, value->0->>8, value->>1
         FROM json_each(?) WHERE true
         ON CONFLICT DO UPDATE SET last = excluded.last WHERE excluded.last > last",
    )
    .bind(&texts)
    .execute(&mut *connection)
    .await?;
    let dimensions: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT j.key, d.id FROM json_each(?) AS j CROSS JOIN dimension AS d
             ON d.namespace = j.value->0->>0 AND d.feature = j.value->0->>1 AND d.customer = j.value->0->>2
             AND d.user_hash = j.value->0->>3 AND d.service_account = j.value->0->>4 AND d.route = j.value->0->>5
             AND d.tier = j.value->0->>6 AND d.backend = j.value->0->>7 AND d.model = j.value->0->>8",
    )
    .bind(&texts)
    .fetch_all(&mut *connection)
    .await?;
    let dimensions = dimensions.into_iter().filter_map(|(place, id)| {
        let (dimension, _) = last.get(usize::try_from(place).ok()?)?;
        Some((*dimension, id))
    });
    Ok(Numbers {
        epochs: epochs.into_iter().collect(),
        accounts: accounts.into_iter().collect(),
        dimensions: dimensions.collect(),
    })
}

/// A count, held at the largest that a column takes.
fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The sums of one bucket.
#[derive(Default)]
struct Sums {
    calls: u64,
    failed: u64,
    usage: Usage,
    charge: Charge,
    best_tier_usd: i64,
}

async fn move_buckets(
    connection: &mut SqliteConnection,
    rows: &Rows,
    numbers: &Numbers<'_>,
    new: &HashSet<(i64, i64)>,
) -> Result<(), sqlx::Error> {
    let mut buckets: BTreeMap<(i64, i64), Sums> = BTreeMap::new();
    for (epoch, row) in &rows.usage {
        let (Some(epoch), Some(dimension)) =
            (numbers.epochs.get(&epoch.to_string()), numbers.dimensions.get(&dimension(row)))
        else {
            continue;
        };
        if !new.contains(&(*epoch, count(row.sequence))) {
            continue;
        }
        let sums = buckets.entry((quarter(row), *dimension)).or_default();
        let Usage { input, cached_input, cache_write, output, reasoning } = row.usage;
        let Charge { usd, tokens, requests } = row.charge;
        sums.calls += 1;
        sums.failed += u64::from(row.outcome == Outcome::ProviderError);
        sums.usage.input = sums.usage.input.saturating_add(input);
        sums.usage.cached_input = sums.usage.cached_input.saturating_add(cached_input);
        sums.usage.cache_write = sums.usage.cache_write.saturating_add(cache_write);
        sums.usage.output = sums.usage.output.saturating_add(output);
        sums.usage.reasoning = sums.usage.reasoning.saturating_add(reasoning);
        sums.charge.usd = sums.charge.usd.saturating_add(usd);
        sums.charge.tokens = sums.charge.tokens.saturating_add(tokens);
        sums.charge.requests = sums.charge.requests.saturating_add(requests);
        sums.best_tier_usd = sums.best_tier_usd.saturating_add(row.best_tier_cost.0);
    }
    let moved: Vec<_> = buckets
        .into_iter()
        .map(|((quarter, dimension), sums)| {
            let Sums { calls, failed, usage, charge, best_tier_usd } = sums;
            let Usage { input, cached_input, cache_write, output, reasoning } = usage;
            let tokens = [input, cached_input, cache_write, output, reasoning].map(count);
            let charged = [charge.usd.0, count(charge.tokens), count(charge.requests), best_tier_usd];
            (quarter, dimension, [count(calls), count(failed)], tokens, charged)
        })
        .collect();
    if moved.is_empty() {
        return Ok(());
    }
    // A sum that is too large becomes a float in SQLite, and would make the commit fail: it stops at the largest
    // integer instead.
    sqlx::query(
        "INSERT INTO bucket (quarter, dimension, calls, failed, input, cached_input, cache_write, output, reasoning,
             usd, tokens, requests, best_tier_usd)
         SELECT value->>0, value->>1, value->2->>0, value->2->>1, value->3->>0, value->3->>1, value->3->>2,
             value->3->>3, value->3->>4, value->4->>0, value->4->>1, value->4->>2, value->4->>3
         FROM json_each(?)
         WHERE true
         ON CONFLICT (quarter, dimension) DO UPDATE SET
             calls = CAST(calls + excluded.calls AS INTEGER),
             failed = CAST(failed + excluded.failed AS INTEGER),
             input = CAST(input + excluded.input AS INTEGER),
             cached_input = CAST(cached_input + excluded.cached_input AS INTEGER),
             cache_write = CAST(cache_write + excluded.cache_write AS INTEGER),
             output = CAST(output + excluded.output AS INTEGER),
             reasoning = CAST(reasoning + excluded.reasoning AS INTEGER),
             usd = CAST(usd + excluded.usd AS INTEGER),
             tokens = CAST(tokens + excluded.tokens AS INTEGER),
             requests = CAST(requests + excluded.requests AS INTEGER),
             best_tier_usd = CAST(best_tier_usd + excluded.best_tier_usd AS INTEGER)",
    )
    .bind(json(&moved)?)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_decisions(
    connection: &mut SqliteConnection,
    decisions: &[(Epoch, Decision)],
) -> Result<(), sqlx::Error> {
    let inserted: Vec<_> = decisions
        .iter()
        .map(|(epoch, decision)| {
            let Decision { request_id, account, accounts, stage, reason, reserve, paused_at, answered_at } =
                decision;
            let accounts: Vec<String> = accounts.iter().map(ToString::to_string).collect();
            let reserved = [reserve.usd.0, count(reserve.tokens), count(reserve.requests)];
            let account = account.as_ref().map(ToString::to_string);
            (
                epoch.to_string(),
                request_id,
                account,
                accounts,
                stage,
                reason,
                reserved,
                paused_at,
                answered_at,
            )
        })
        .collect();
    sqlx::query(
        "INSERT INTO decision (epoch, request_id, account, accounts, stage, reason, reserved_usd, reserved_tokens,
             reserved_requests, paused_at, answered_at)
         SELECT value->>0, value->>1, value->>2, value->3, value->>4, value->>5, value->6->>0, value->6->>1,
             value->6->>2, value->>7, value->>8
         FROM json_each(?)",
    )
    .bind(json(&inserted)?)
    .execute(connection)
    .await?;
    Ok(())
}
