//! The store on real SQLite files: what is written is read back, nothing twice, nothing in part.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use plimsoll::ledger::sqlite::{check, retire};
use plimsoll::ledger::store::Place;
use plimsoll::ledger::{Clock, ServerSettings, SqliteStore, Store, StoreError, Transport, export, start};
use plimsoll_core::account::{AccountKey, Amount, Charge, LimitKey, Unit};
use plimsoll_core::ids::{Epoch, ObjectName, UnixMs};
use plimsoll_core::ledger::{Balance, EpochRecord, EpochState, Held, Rows, Touched, over_before};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{Budget, Enforcement, Limit, Namespaces, PolicyKey, PolicyObject, Verdict};
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::{Caller, Decision, Outcome, UsageRow};
use plimsoll_core::usage::Usage;
use std::time::Instant;

const DAY_MS: i64 = 86_400_000;
/// 2026-11-01T00:00Z.
const MONTH: UnixMs = UnixMs(1_793_491_200_000);
const NOW: UnixMs = UnixMs(MONTH.0 + 5 * DAY_MS);

fn account(budget: &str, unit: Unit) -> AccountKey {
    let budget = ObjectName::new("finance", budget);
    let limit = LimitKey::new(budget, "month".into(), unit, "Month@UTC".into());
    AccountKey { limit, start: MONTH, key: String::new() }
}

fn row(sequence: u64, accounts: Vec<AccountKey>, nanos: i64) -> UsageRow {
    UsageRow {
        sequence,
        settled_sequence: sequence + 1,
        request_id: format!("request-{sequence}"),
        attempt: 0,
        paused_at: NOW,
        admitted_at: NOW,
        settled_at: NOW.plus(250),
        accounts,
        observed: vec![ObjectName::new("finance", "watched")],
        caller: Caller {
            namespace: "finance".into(),
            feature: "invoice \"x\" | päivä".into(),
            customer: "(none)".into(),
            user_hash: "ab12".into(),
            service_account: "default".into(),
            session: format!("s-{sequence}"),
        },
        route: "assistant".into(),
        tier: "premium".into(),
        backend: ObjectName::new("plimsoll-system", "openai"),
        model: "gpt-5.2".into(),
        usage: Usage { input: 10, cached_input: 3, cache_write: 2, output: 7, reasoning: 1 },
        charge: Charge { usd: NanoUsd(nanos), tokens: 22, requests: 1 },
        reserve: Charge { usd: NanoUsd(nanos * 4), tokens: 100, requests: 1 },
        best_tier_cost: NanoUsd(nanos * 2),
        price_version: PriceVersion(u64::MAX - 5),
        outcome: Outcome::Completed,
    }
}

fn decision(request: &str, answered_at: UnixMs) -> Decision {
    Decision {
        request_id: request.into(),
        account: Some(account("all", Unit::Usd)),
        accounts: vec![account("all", Unit::Usd), account("all", Unit::Tokens)],
        stage: "Block".into(),
        reason: "budget_exceeded".into(),
        reserve: Charge { usd: NanoUsd(5), tokens: 6, requests: 1 },
        paused_at: answered_at.plus(-40),
        answered_at,
    }
}

/// Settles `rows` for `epoch` as a step would: totals, rows and `through` together.
fn settle(rows: &mut Rows, epoch: Epoch, settled: Vec<UsageRow>) {
    let record = epoch_mut(rows, epoch);
    record.gateway = "gw-1".into();
    record.heard = NOW;
    for row in settled {
        for account in &row.accounts {
            let held = held_mut(rows, account, epoch);
            held.granted = held.granted.plus(row.reserve.of(account.limit.unit));
            held.settled = held.settled.plus(row.charge.of(account.limit.unit));
        }
        epoch_mut(rows, epoch).through = row.settled_sequence;
        rows.usage.push((epoch, row));
    }
}

fn epoch_mut(rows: &mut Rows, epoch: Epoch) -> &mut EpochRecord {
    rows.changed_epochs.insert(epoch);
    rows.epochs.entry(epoch).or_default()
}

fn balance_mut<'a>(rows: &'a mut Rows, account: &AccountKey) -> &'a mut Balance {
    rows.changed_balances.insert(account.clone());
    let new = Balance { counted_since: NOW, ..Balance::default() };
    rows.balances.entry(account.clone()).or_insert(new)
}

fn held_mut<'a>(rows: &'a mut Rows, account: &AccountKey, epoch: Epoch) -> &'a mut Held {
    balance_mut(rows, account).held.entry(epoch).or_default()
}

fn touched(accounts: &[AccountKey]) -> Touched {
    Touched { accounts: accounts.iter().cloned().collect(), ..Touched::default() }
}

#[tokio::test]
async fn what_is_committed_is_what_is_read_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let store = SqliteStore::open(&path).await.unwrap();
    let key = store.identity().hmac_key;
    let (usd, tokens, watched) =
        (account("all", Unit::Usd), account("all", Unit::Tokens), account("watched", Unit::Usd));
    let accounts = [usd.clone(), tokens.clone(), watched.clone()];
    let epoch = Epoch(u128::MAX - 3);
    let first = row(1, vec![tokens.clone(), usd.clone()], 1_000);
    store
        .commit(touched(&accounts), NOW, |rows| {
            assert!(rows.balances.is_empty() && rows.epochs.is_empty());
            settle(rows, epoch, vec![first.clone()]);
            let balance = balance_mut(rows, &watched);
            balance.settled = Amount(1_000);
            balance.would_refuse = 1;
            rows.observed.insert((epoch, 1), vec![watched.clone()]);
            rows.decisions.push((epoch, decision("request-9", NOW)));
        })
        .await
        .unwrap();
    drop(store);

    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(store.identity().hmac_key, key, "the key is made once");
    assert_eq!(store.latest(), NOW, "the clock goes on from the last commit");
    let seen = store.commit(touched(&accounts), NOW, |rows| rows.clone()).await.unwrap();
    let held = Held { granted: Amount(4_000), returned: Amount(0), settled: Amount(1_000) };
    assert_eq!(seen.balances[&usd].held[&epoch], held);
    assert_eq!(seen.balances[&usd].counted_since, NOW);
    assert_eq!(seen.balances[&tokens].held[&epoch].settled, Amount(22));
    assert_eq!((seen.balances[&watched].settled, seen.balances[&watched].would_refuse), (Amount(1_000), 1));
    let record = EpochRecord {
        gateway: "gw-1".into(),
        through: 2,
        state: EpochState::Live,
        heard: NOW,
        undeclared: false,
    };
    assert_eq!(seen.epochs, [(epoch, record)].into());

    // While the operator still has it.
    let export = export(&path).await.unwrap();
    assert_eq!(export.rows, [(epoch, first)]);
    assert_eq!(export.decisions, [(epoch, decision("request-9", NOW))]);
    assert_eq!(export.balances, seen.balances);
    assert_eq!(store.check().await.unwrap(), []);
}

#[tokio::test]
async fn a_row_that_comes_twice_moves_its_bucket_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let store = SqliteStore::open(&path).await.unwrap();
    let usd = account("all", Unit::Usd);
    for _ in 0..2 {
        let rows = vec![row(1, vec![usd.clone()], 100), row(2, vec![usd.clone()], 100)];
        store
            .commit(touched(std::slice::from_ref(&usd)), NOW, |all| {
                let record = epoch_mut(all, Epoch(7));
                record.gateway = "gw".into();
                held_mut(all, &usd, Epoch(7)).settled = Amount(200);
                all.usage.extend(rows.into_iter().map(|row| (Epoch(7), row)));
            })
            .await
            .unwrap();
    }
    assert_eq!(export(&path).await.unwrap().rows.len(), 2);
    let mut connection = reader(&path).await;
    let bucket: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT calls, usd, input FROM bucket").fetch_all(&mut connection).await.unwrap();
    assert_eq!(bucket, [(2, 200, 20)]);
}

#[tokio::test]
async fn a_row_of_an_impossible_instant_is_stored_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let store = SqliteStore::open(&path).await.unwrap();
    let usd = account("all", Unit::Usd);
    let commit = store.commit(touched(std::slice::from_ref(&usd)), NOW, |all| {
        let instants = [UnixMs(i64::MIN), UnixMs::NEVER];
        let rows =
            (1..).zip(instants).map(|(n, at)| UsageRow { admitted_at: at, ..row(n, vec![usd.clone()], 1) });
        settle(all, Epoch(7), rows.collect());
    });
    commit.await.unwrap();
    let mut connection = reader(&path).await;
    let rows = sqlx::query_scalar::<_, i64>("SELECT sum(calls) FROM bucket").fetch_one(&mut connection);
    assert_eq!(rows.await.unwrap(), 2);
}

#[tokio::test]
async fn folding_an_epoch_takes_its_holdings_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("l")).await.unwrap();
    let usd = account("all", Unit::Usd);
    let epoch = Epoch(1);
    store
        .commit(touched(&[]), NOW, |rows| settle(rows, epoch, vec![row(1, vec![usd.clone()], 10)]))
        .await
        .unwrap();
    let all_of = Touched { all_of: [epoch].into(), epochs: [epoch].into(), ..Touched::default() };
    store
        .commit(all_of.clone(), NOW, |rows| {
            assert_eq!(rows.balances.len(), 1, "all_of finds what the epoch has a part in");
            let balance = balance_mut(rows, &usd);
            balance.settled = balance.held.remove(&epoch).unwrap().settled;
            epoch_mut(rows, epoch).state = EpochState::Closed;
        })
        .await
        .unwrap();
    let seen = store
        .commit(Touched { accounts: [usd.clone()].into(), ..all_of }, NOW, |rows| rows.clone())
        .await
        .unwrap();
    assert!(seen.balances[&usd].held.is_empty());
    assert_eq!(seen.balances[&usd].settled, Amount(10));
    assert_eq!(seen.epochs[&epoch].state, EpochState::Closed, "a closed epoch is read when it is named");
    let seen = store.commit(touched(&[]), NOW, |rows| rows.clone()).await.unwrap();
    assert!(seen.epochs.is_empty(), "and else it is not");
    assert_eq!(store.check().await.unwrap(), []);
}

#[tokio::test]
async fn a_row_that_no_balance_holds_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("l")).await.unwrap();
    let usd = account("all", Unit::Usd);
    store
        .commit(touched(&[]), NOW, |rows| {
            settle(rows, Epoch(1), vec![row(1, vec![usd.clone()], 10)]);
            held_mut(rows, &usd, Epoch(1)).settled = Amount(9);
        })
        .await
        .unwrap();
    let found = store.check().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].settled, found[0].rows), (Amount(9), Amount(10)));
}

#[tokio::test]
async fn a_second_operator_is_told_who_has_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let first = SqliteStore::open(&path).await.unwrap();
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
    drop(first);
    SqliteStore::open(&path).await.unwrap();
}

#[tokio::test]
async fn somebody_elses_database_and_a_newer_ledger_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("foreign");
    let mut connection = writer(&foreign).await;
    sqlx::raw_sql("CREATE TABLE t (x)").execute(&mut connection).await.unwrap();
    let error = SqliteStore::open(&foreign).await.unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");

    let newer = dir.path().join("newer");
    drop(SqliteStore::open(&newer).await.unwrap());
    let mut connection = writer(&newer).await;
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&mut connection).await.unwrap();
    let error = SqliteStore::open(&newer).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
}

fn policy(name: &str, amount: i64) -> PolicyObject {
    let limit = Limit {
        name: "month".into(),
        unit: Unit::Usd,
        window: "Month@Europe/Berlin".into(),
        amount: Amount(amount),
        block_at: Amount(amount),
    };
    let body = Budget {
        namespaces: Namespaces::All,
        features: None,
        users: None,
        routes: None,
        models: None,
        limits: vec![limit],
        enforcement: Enforcement::Enforce,
        unpriced: Verdict::Deny,
        contact: Some("#ai \"päivä\" 'x'".into()),
    };
    PolicyObject::encode(PolicyKey::Budget(ObjectName::new("finance", name)), &body)
}

#[tokio::test]
async fn what_was_in_force_is_remembered_and_what_is_not_understood_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let store = SqliteStore::open(&path).await.unwrap();
    assert!(store.remembered().await.unwrap().is_empty());
    store.remember(vec![policy("a", 1), policy("b", 2)], vec![]).await.unwrap();
    store.remember(vec![policy("a", 3), policy("c", 4)], vec![policy("b", 0).key]).await.unwrap();
    // As after a restart: nothing is other than before.
    store.remember(vec![policy("a", 3), policy("c", 4)], vec![]).await.unwrap();
    drop(store);
    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(store.remembered().await.unwrap(), [policy("a", 3), policy("c", 4)]);
    drop(store);
    let mut connection = writer(&path).await;
    let later = "UPDATE policy SET body = '{\"of\": \"later\"}' WHERE key = 'budget/finance/a'";
    sqlx::raw_sql(later).execute(&mut connection).await.unwrap();
    let error = SqliteStore::open(&path).await.unwrap().remembered().await.unwrap_err();
    assert!(error.to_string().contains("can't read: policy budget/finance/a"), "{error}");
}

#[tokio::test]
async fn a_full_file_commits_nothing_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("l")).await.unwrap();
    let usd = account("all", Unit::Usd);
    let batch = |from: u64| (from..from + 200).map(|n| row(2 * n, vec![usd.clone()], 1)).collect::<Vec<_>>();
    store.set_max_pages(40).await;
    let mut stored = 0;
    let error = loop {
        let settled = batch(stored);
        match store
            .commit(touched(std::slice::from_ref(&usd)), NOW, |rows| settle(rows, Epoch(1), settled))
            .await
        {
            Ok(()) => stored += 200,
            Err(error) => break error,
        }
        assert!(stored < 100_000, "40 pages never fill");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(store.check().await.unwrap(), [], "the commit that failed left nothing");
    let balance =
        |rows: &mut Rows| rows.balances.get(&usd).map_or(0, |balance| balance.held[&Epoch(1)].settled.0);
    let settled = store.commit(touched(std::slice::from_ref(&usd)), NOW, balance).await.unwrap();
    assert_eq!(settled, i64::try_from(stored).unwrap());
    store.set_max_pages(0).await;
    let more = batch(stored);
    store
        .commit(touched(std::slice::from_ref(&usd)), NOW, |rows| settle(rows, Epoch(1), more))
        .await
        .unwrap();
    assert_eq!(store.check().await.unwrap(), []);
}

#[tokio::test]
async fn a_damaged_file_is_named_and_nothing_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    std::fs::write(&path, b"this is no database, whatever its name says".repeat(200)).unwrap();
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");

    let path = dir.path().join("m");
    let store = SqliteStore::open(&path).await.unwrap();
    let usd = account("all", Unit::Usd);
    let rows: Vec<_> = (0..2_000).map(|n| row(n, vec![usd.clone()], 1)).collect();
    store.commit(touched(&[]), NOW, |all| settle(all, Epoch(1), rows)).await.unwrap();
    // Closing takes the log into the file; then everything behind the schema is overwritten.
    drop(store);
    let mut connection = writer(&path).await;
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[3 * 4096..len].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    let error = match SqliteStore::open(&path).await {
        Err(error) => error,
        Ok(store) => store.commit(touched(&[usd]), NOW, |rows| rows.clone()).await.unwrap_err(),
    };
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(check(&path).await.is_err());
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_what_is_not_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let store = SqliteStore::open(&path).await.unwrap();
    let usd = account("all", Unit::Usd);
    store
        .commit(touched(&[]), NOW, |rows| {
            settle(rows, Epoch(1), vec![row(1, vec![usd.clone()], 10)]);
            rows.decisions.extend((0..5).map(|n| (Epoch(1), decision(&format!("d{n}"), NOW.plus(n)))));
        })
        .await
        .unwrap();
    store.set_max_decisions(3);
    let forgotten = store.forget(NOW).await.unwrap();
    assert_eq!((forgotten.rows, forgotten.buckets, forgotten.balances, forgotten.decisions), (0, 0, 0, 2));
    assert_eq!(export(&path).await.unwrap().decisions[0].1.request_id, "d2", "the latest are kept");
    let forgotten = store.forget(NOW.plus(36 * DAY_MS)).await.unwrap();
    assert_eq!((forgotten.rows, forgotten.buckets, forgotten.balances, forgotten.decisions), (1, 0, 0, 3));
    assert_eq!(store.check().await.unwrap(), [], "a balance older than its rows is not compared");
    // The window ends on 1 December; 35 days later its balance goes.
    assert_eq!(store.forget(MONTH.plus((30 + 35) * DAY_MS)).await.unwrap().balances, 0);
    assert_eq!(store.forget(MONTH.plus((30 + 35) * DAY_MS + 1)).await.unwrap().balances, 1);
    assert_eq!(store.forget(NOW.plus(801 * DAY_MS)).await.unwrap().buckets, 1);
    assert!(store.books().await.unwrap().balances.is_empty());
}

#[tokio::test]
async fn a_lost_epoch_that_holds_nothing_is_closed_after_35_days() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("l")).await.unwrap();
    let usd = account("all", Unit::Usd);
    let (lost, live, holds, waited_for) = (Epoch(1), Epoch(2), Epoch(3), Epoch(4));
    let commit = store.commit(touched(&[]), NOW, |rows| {
        for epoch in [lost, live, holds, waited_for] {
            let record = epoch_mut(rows, epoch);
            (record.state, record.heard) = (EpochState::Lost, NOW);
        }
        epoch_mut(rows, live).state = EpochState::Live;
        epoch_mut(rows, waited_for).undeclared = true;
        held_mut(rows, &usd, holds).granted = Amount(1);
    });
    commit.await.unwrap();
    let open = async || store.books().await.unwrap().epochs.into_keys().collect::<Vec<_>>();
    store.forget(NOW.plus(35 * DAY_MS)).await.unwrap();
    assert_eq!(open().await, [lost, live, holds, waited_for]);
    store.forget(NOW.plus(35 * DAY_MS + 1)).await.unwrap();
    assert_eq!(open().await, [live, holds, waited_for]);
    // Its holding goes with the balance, 35 days after the window's end.
    store.forget(MONTH.plus((30 + 35) * DAY_MS + 1)).await.unwrap();
    assert_eq!(open().await, [live, waited_for]);
    // A gateway that comes back with it is told.
    let named = Touched { epochs: [lost].into(), ..Touched::default() };
    let state = store.commit(named, NOW, |rows| rows.epochs[&lost].state).await.unwrap();
    assert_eq!(state, EpochState::Closed);
}

#[tokio::test]
async fn a_ledger_of_the_first_schema_is_brought_up_and_keeps_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut connection = writer(&path).await;
    let usd = account("all", Unit::Usd);
    let first = include_str!("../src/ledger/sqlite/schema-1.sql");
    let old = format!(
        "{first}; PRAGMA application_id = {}; PRAGMA user_version = 1;
         INSERT INTO account VALUES (1, '{usd}', 5); INSERT INTO balance VALUES (1, 70, 0, 3, 0);
         INSERT INTO epoch VALUES (1, '{}', 'gw-1', 2, 0, 4); INSERT INTO holding VALUES (1, 1, 50, 10, 30);",
        0x504c_494d,
        Epoch(7)
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(old)).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let error = retire(&path, "gw-1", NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Older { found: 1, .. }), "{error}");

    let store = SqliteStore::open(&path).await.unwrap();
    let books = store.books().await.unwrap();
    let balance = &books.balances[&usd];
    assert_eq!(
        (balance.settled, balance.overrun, balance.held[&Epoch(7)].returned.0),
        (Amount(70), Amount(0), 10)
    );
    assert!(!books.epochs[&Epoch(7)].undeclared);
    // Opened again it is what it is.
    drop(store);
    assert_eq!(SqliteStore::open(&path).await.unwrap().books().await.unwrap(), books);
}

/// `account`'s limit, by the minute, in the `n`th minute of the month.
fn minute(n: i64) -> AccountKey {
    minute_after(MONTH, n)
}

fn minute_after(from: UnixMs, n: i64) -> AccountKey {
    let AccountKey { limit, .. } = account("all", Unit::Usd);
    let limit = LimitKey::new(limit.budget.clone(), limit.limit.clone(), limit.unit, "Minute@UTC".into());
    AccountKey { limit, start: from.plus(n * 60_000), key: String::new() }
}

#[tokio::test]
async fn parts_of_ended_windows_are_folded_in_steps_and_rows_still_sum_to_balances() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("l")).await.unwrap();
    const MINUTES: i64 = 2_500;
    for from in (0..MINUTES).step_by(500) {
        let rows = (from..from + 500).map(|n| {
            let mut row = row(2 * n.unsigned_abs() + 1, vec![minute(n)], 10);
            // All of it is spent, but for one call that is in flight.
            row.reserve = row.charge;
            row.reserve.usd.0 += i64::from(n == 1_200);
            row.admitted_at = minute(n).start;
            row
        });
        let rows: Vec<_> = rows.collect();
        store.commit(touched(&[]), NOW, |all| settle(all, Epoch(1), rows)).await.unwrap();
    }
    let ended = MONTH.plus(MINUTES * 60_000);
    let now = NOW.plus(1);
    assert_eq!(store.ended(over_before(MONTH), Place::FIRST).await.unwrap(), ([].into(), Place::FIRST));
    let (mut place, mut steps, mut folded) = (Place::FIRST, 0, 0);
    loop {
        let (accounts, next) = store.ended(over_before(now), place).await.unwrap();
        assert!(accounts.len() <= 1_000, "a step is bounded");
        if next == place {
            break;
        }
        (place, steps) = (next, steps + 1);
        let touched = Touched { accounts, ..Touched::default() };
        folded += store.commit(touched, now, |rows| rows.fold_ended(now)).await.unwrap();
    }
    assert_eq!((steps, folded), (3, 2_499));
    let books = store.books().await.unwrap();
    let held: Vec<_> = books.balances.iter().filter(|(_, balance)| !balance.held.is_empty()).collect();
    assert_eq!(held.iter().map(|(account, _)| *account).collect::<Vec<_>>(), [&minute(1_200)]);
    assert!(books.balances.values().all(|balance| balance.standing(&books.epochs).settled == Amount(10)));
    assert_eq!(store.check().await.unwrap(), []);
    assert_eq!(store.latest(), now, "the clock does not go back behind a fold");

    // 35 days after their ends they go, held or not; in steps as well.
    let late = ended.plus(35 * DAY_MS);
    assert_eq!(store.forget(MONTH.plus(35 * DAY_MS + 60_000)).await.unwrap().balances, 0);
    assert_eq!(store.forget(late).await.unwrap().balances, 2_499, "the last one ends at this instant");
    assert_eq!(store.forget(late.plus(1)).await.unwrap().balances, 1);
    assert!(store.books().await.unwrap().balances.is_empty());
    assert_eq!(store.check().await.unwrap(), []);
}

#[tokio::test]
async fn a_running_ledger_folds_what_ended_windows_leave() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let store = SqliteStore::open(&path).await.unwrap();
    // Of four days ago: a running ledger has no other clock than the system's.
    let now = Clock::new(UnixMs(0)).now();
    let from = UnixMs(now.0 - now.0 % 60_000 - 4 * DAY_MS);
    let rows = (0..1_500).map(|n: i64| {
        let reserve = row(0, vec![], 10).charge;
        UsageRow { reserve, ..row(2 * n.unsigned_abs() + 1, vec![minute_after(from, n)], 10) }
    });
    let rows: Vec<_> = rows.collect();
    store.commit(touched(&[]), now, |all| settle(all, Epoch(1), rows)).await.unwrap();
    let settings = ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        transport: Transport::PlainText,
        ride_through_ms: 60_000,
        lost_after_ms: 600_000,
    };
    let ledger = start(settings, store).await.unwrap();
    let started = Instant::now();
    loop {
        let balances = export(&path).await.unwrap().balances;
        assert_eq!(balances.len(), 1_500);
        if balances.values().all(|balance| balance.held.is_empty() && balance.settled == Amount(10)) {
            break;
        }
        assert!(started.elapsed().as_secs() < 30, "nothing is folded");
        tokio::task::yield_now().await;
    }
    ledger.shutdown().await;
    assert_eq!(check(&path).await.unwrap(), []);
}

/// Not a bound of a test machine, only what would be news: group commit keeps one fsync for all of them.
#[tokio::test]
async fn a_commit_of_200_rows_over_8_accounts_takes_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("l")).await.unwrap();
    let accounts: Vec<_> = (0..8).map(|n| account(&format!("b{n}"), Unit::Usd)).collect();
    let mut took = Vec::new();
    for commit in 0..20 {
        let rows: Vec<_> = (0..200).map(|n| row(2 * (commit * 200 + n), accounts.clone(), 1)).collect();
        let start = Instant::now();
        store.commit(touched(&accounts), NOW, |all| settle(all, Epoch(1), rows)).await.unwrap();
        took.push(start.elapsed());
    }
    took.sort();
    println!("commit of 200 rows: median {:?}, worst {:?}", took[10], took[19]);
    assert!(took[10].as_millis() < 100, "{took:?}");
}

async fn reader(path: &std::path::Path) -> sqlx::SqliteConnection {
    use sqlx::ConnectOptions;
    sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true).connect().await.unwrap()
}

async fn writer(path: &std::path::Path) -> sqlx::SqliteConnection {
    use sqlx::ConnectOptions;
    sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}
