//! Usage rows, their buckets, and decisions: written with the balances that they move.

use super::{balances, json};
use plimsoll_core::account::{AccountKey, Charge};
use plimsoll_core::ids::{Epoch, ObjectName, UnixMs};
use plimsoll_core::ledger::Rows;
use plimsoll_core::protocol::{Caller, Decision, Outcome, UsageRow};
use plimsoll_core::usage::Usage;
use serde::Serialize;
use sqlx::SqliteConnection;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A quarter of an hour in milliseconds.
const QUARTER_MS: i64 = 15 * 60 * 1_000;

/// Inserts rows, moves their buckets, inserts decisions. A row that is stored already changes nothing.
pub(super) async fn save(connection: &mut SqliteConnection, rows: &Rows) -> Result<(), sqlx::Error> {
    if !rows.usage.is_empty() {
        let new = insert(connection, rows).await?;
        move_buckets(connection, rows, &new).await?;
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
    row.admitted_at.0.div_euclid(QUARTER_MS) * QUARTER_MS
}

/// A usage row as its statement reads it.
#[derive(Serialize)]
struct Inserted<'a> {
    epoch: String,
    sequence: i64,
    settled_sequence: i64,
    request_id: &'a str,
    attempt: u32,
    paused_at: UnixMs,
    admitted_at: UnixMs,
    settled_at: UnixMs,
    accounts: Vec<String>,
    observed: &'a [ObjectName],
    observed_accounts: Vec<String>,
    dimension: Dimension<'a>,
    session: &'a str,
    input: i64,
    cached_input: i64,
    cache_write: i64,
    output: i64,
    reasoning: i64,
    usd: i64,
    tokens: i64,
    requests: i64,
    reserved_usd: i64,
    reserved_tokens: i64,
    reserved_requests: i64,
    best_tier_usd: i64,
    price_version: i64,
    outcome: i64,
}

/// Inserts the rows; returns those that were new.
async fn insert(
    connection: &mut SqliteConnection,
    rows: &Rows,
) -> Result<HashSet<(String, i64)>, sqlx::Error> {
    let named: BTreeSet<AccountKey> = rows
        .usage
        .iter()
        .flat_map(|(_, row)| &row.accounts)
        .chain(rows.observed.values().flatten())
        .cloned()
        .collect();
    balances::name_accounts(connection, &named).await?;
    let mut dimensions: BTreeMap<Dimension, i64> = BTreeMap::new();
    for (_, row) in &rows.usage {
        let last = dimensions.entry(dimension(row)).or_insert(i64::MIN);
        *last = quarter(row).max(*last);
    }
    let dimensions: Vec<(Dimension, i64)> = dimensions.into_iter().collect();
    sqlx::query(
        "INSERT INTO dimension
             (namespace, feature, customer, user_hash, service_account, route, tier, backend, model, last)
         SELECT value->0->>0, value->0->>1, value->0->>2, value->0->>3, value->0->>4, value->0->>5, value->0->>6,
             value->0->>7, value->0->>8, value->>1
         FROM json_each(?) WHERE true
         ON CONFLICT DO UPDATE SET last = excluded.last WHERE excluded.last > last",
    )
    .bind(json(&dimensions)?)
    .execute(&mut *connection)
    .await?;
    let inserted: Vec<Inserted> = rows.usage.iter().map(|(epoch, row)| inserted(*epoch, row, rows)).collect();
    let new: Vec<(String, i64)> = sqlx::query_as(
        "INSERT INTO usage_row (epoch, sequence, settled_sequence, request_id, attempt, paused_at, admitted_at,
             settled_at, accounts, observed, observed_accounts, dimension, session, input, cached_input, cache_write,
             output, reasoning, usd, tokens, requests, reserved_usd, reserved_tokens, reserved_requests,
             best_tier_usd, price_version, outcome)
         SELECT
             (SELECT id FROM epoch WHERE epoch.epoch = r.value->>'epoch'),
             r.value->>'sequence', r.value->>'settled_sequence', r.value->>'request_id', r.value->>'attempt',
             r.value->>'paused_at', r.value->>'admitted_at', r.value->>'settled_at',
             (SELECT json_group_array(account.id) FROM json_each(r.value->'accounts') AS a
              CROSS JOIN account ON account.key = a.value),
             r.value->'observed',
             (SELECT json_group_array(account.id) FROM json_each(r.value->'observed_accounts') AS a
              CROSS JOIN account ON account.key = a.value),
             d.id, r.value->>'session', r.value->>'input', r.value->>'cached_input', r.value->>'cache_write',
             r.value->>'output', r.value->>'reasoning', r.value->>'usd', r.value->>'tokens', r.value->>'requests',
             r.value->>'reserved_usd', r.value->>'reserved_tokens', r.value->>'reserved_requests',
             r.value->>'best_tier_usd', r.value->>'price_version', r.value->>'outcome'
         FROM json_each(?) AS r CROSS JOIN dimension AS d
             ON d.namespace = r.value->'dimension'->>0 AND d.feature = r.value->'dimension'->>1
             AND d.customer = r.value->'dimension'->>2 AND d.user_hash = r.value->'dimension'->>3
             AND d.service_account = r.value->'dimension'->>4 AND d.route = r.value->'dimension'->>5
             AND d.tier = r.value->'dimension'->>6 AND d.backend = r.value->'dimension'->>7
             AND d.model = r.value->'dimension'->>8
         WHERE true
         ON CONFLICT (epoch, sequence) DO NOTHING
         RETURNING (SELECT epoch FROM epoch WHERE id = usage_row.epoch), sequence",
    )
    .bind(json(&inserted)?)
    .fetch_all(&mut *connection)
    .await?;
    Ok(new.into_iter().collect())
}

fn inserted<'a>(epoch: Epoch, row: &'a UsageRow, rows: &Rows) -> Inserted<'a> {
    let UsageRow {
        sequence,
        settled_sequence,
        request_id,
        attempt,
        paused_at,
        admitted_at,
        settled_at,
        accounts,
        observed,
        caller,
        route: _,
        tier: _,
        backend: _,
        model: _,
        usage,
        charge,
        reserve,
        best_tier_cost,
        price_version,
        outcome,
    } = row;
    let Usage { input, cached_input, cache_write, output, reasoning } = *usage;
    let observed_accounts = rows.observed.get(&(epoch, *sequence)).into_iter().flatten();
    Inserted {
        epoch: epoch.to_string(),
        sequence: count(*sequence),
        settled_sequence: count(*settled_sequence),
        request_id,
        attempt: *attempt,
        paused_at: *paused_at,
        admitted_at: *admitted_at,
        settled_at: *settled_at,
        accounts: accounts.iter().map(ToString::to_string).collect(),
        observed,
        observed_accounts: observed_accounts.map(ToString::to_string).collect(),
        dimension: dimension(row),
        session: &caller.session,
        input: count(input),
        cached_input: count(cached_input),
        cache_write: count(cache_write),
        output: count(output),
        reasoning: count(reasoning),
        usd: charge.usd.0,
        tokens: count(charge.tokens),
        requests: count(charge.requests),
        reserved_usd: reserve.usd.0,
        reserved_tokens: count(reserve.tokens),
        reserved_requests: count(reserve.requests),
        best_tier_usd: best_tier_cost.0,
        price_version: price_version.0.cast_signed(),
        outcome: match outcome {
            Outcome::Completed => 0,
            Outcome::UsageMissing => 1,
            Outcome::ProviderError => 2,
            Outcome::Abandoned => 3,
            Outcome::Replayed => 4,
        },
    }
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
    new: &HashSet<(String, i64)>,
) -> Result<(), sqlx::Error> {
    let mut buckets: BTreeMap<(i64, Dimension), Sums> = BTreeMap::new();
    for (epoch, row) in &rows.usage {
        if !new.contains(&(epoch.to_string(), count(row.sequence))) {
            continue;
        }
        let sums = buckets.entry((quarter(row), dimension(row))).or_default();
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
    sqlx::query(
        "INSERT INTO bucket (quarter, dimension, calls, failed, input, cached_input, cache_write, output, reasoning,
             usd, tokens, requests, best_tier_usd)
         SELECT value->>0, d.id, value->2->>0, value->2->>1, value->3->>0, value->3->>1, value->3->>2, value->3->>3,
             value->3->>4, value->4->>0, value->4->>1, value->4->>2, value->4->>3
         FROM json_each(?) AS b CROSS JOIN dimension AS d
             ON d.namespace = b.value->1->>0 AND d.feature = b.value->1->>1 AND d.customer = b.value->1->>2
             AND d.user_hash = b.value->1->>3 AND d.service_account = b.value->1->>4 AND d.route = b.value->1->>5
             AND d.tier = b.value->1->>6 AND d.backend = b.value->1->>7 AND d.model = b.value->1->>8
         WHERE true
         ON CONFLICT (quarter, dimension) DO UPDATE SET calls = calls + excluded.calls,
             failed = failed + excluded.failed, input = input + excluded.input,
             cached_input = cached_input + excluded.cached_input, cache_write = cache_write + excluded.cache_write,
             output = output + excluded.output, reasoning = reasoning + excluded.reasoning, usd = usd + excluded.usd,
             tokens = tokens + excluded.tokens, requests = requests + excluded.requests,
             best_tier_usd = best_tier_usd + excluded.best_tier_usd",
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
