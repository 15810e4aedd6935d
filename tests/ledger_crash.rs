//! The store when its process or its file dies: killed at random instants, or not writable.
//!
//! The process that dies is this test binary, started again with a variable that says what to do.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use plimsoll::ledger::{SqliteStore, Store, StoreError, export};
use plimsoll_core::account::{AccountKey, Amount, Charge, LimitKey, Unit};
use plimsoll_core::ids::{Epoch, ObjectName, UnixMs};
use plimsoll_core::ledger::{Balance, Rows, Touched};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::{Caller, Outcome, UsageRow};
use plimsoll_core::usage::Usage;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const NOW: UnixMs = UnixMs(1_794_000_000_000);
const EPOCH: Epoch = Epoch(7);
const BATCH: u64 = 20;
const ROLE: &str = "PLIMSOLL_TEST_STORE";

fn account(n: u64) -> AccountKey {
    let budget = ObjectName::new("finance", format!("b{n}"));
    let limit = LimitKey::new(budget, "total".into(), Unit::Usd, "Total@UTC".into());
    AccountKey { limit, start: UnixMs(0), key: String::new() }
}

fn row(sequence: u64) -> UsageRow {
    UsageRow {
        sequence,
        settled_sequence: sequence,
        request_id: format!("r{sequence}"),
        attempt: 0,
        paused_at: NOW,
        admitted_at: NOW,
        settled_at: NOW,
        accounts: vec![account(0), account(1 + sequence % 7)],
        observed: vec![],
        caller: Caller::default(),
        route: String::new(),
        tier: String::new(),
        backend: ObjectName::new("a", "b"),
        model: "m".into(),
        usage: Usage::default(),
        charge: Charge { usd: NanoUsd(i64::try_from(sequence).unwrap()), tokens: 1, requests: 1 },
        reserve: Charge::default(),
        best_tier_cost: NanoUsd(0),
        price_version: PriceVersion(1),
        outcome: Outcome::Completed,
    }
}

/// Settles the next rows, as a step does.
fn settle_next(rows: &mut Rows) -> u64 {
    let record = rows.epochs.entry(EPOCH).or_default();
    record.gateway = "gw".into();
    let from = record.through;
    record.through = from + BATCH;
    rows.changed_epochs.insert(EPOCH);
    for sequence in from + 1..=from + BATCH {
        let row = row(sequence);
        for account in &row.accounts {
            let new = Balance { counted_since: NOW, ..Balance::default() };
            let balance = rows.balances.entry(account.clone()).or_insert(new);
            let held = balance.held.entry(EPOCH).or_default();
            held.settled = held.settled.plus(Amount(row.charge.usd.0));
            rows.changed_balances.insert(account.clone());
        }
        rows.usage.push((EPOCH, row));
    }
    from + BATCH
}

fn all_accounts() -> Touched {
    Touched { accounts: (0..8).map(account).collect(), ..Touched::default() }
}

/// Not a test of its own: what the started process does.
#[tokio::test]
async fn child() {
    let Ok(path) = std::env::var(ROLE) else { return };
    if path.starts_with("readonly:") {
        let path = path.trim_start_matches("readonly:");
        let said = match SqliteStore::open(path).await {
            Err(error) => {
                (matches!(error, StoreError::ReadOnly { .. } | StoreError::Open { .. }), error.to_string())
            }
            Ok(store) => match store.commit(all_accounts(), NOW, settle_next).await {
                Err(error) => (matches!(error, StoreError::ReadOnly { .. }), error.to_string()),
                Ok(_) => (false, "it was written".into()),
            },
        };
        println!("\nSAID {} {}", said.0, said.1);
        return;
    }
    let store = SqliteStore::open(path).await.unwrap();
    loop {
        let through = store.commit(all_accounts(), NOW, settle_next).await.unwrap();
        // Only what was answered counts.
        println!("\nCOMMITTED {through}");
        std::io::stdout().flush().unwrap();
    }
}

fn start_child(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["child", "--exact", "--nocapture"])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

#[tokio::test]
async fn killed_at_any_instant_the_ledger_has_all_that_it_answered_and_nothing_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut stored = 0;
    for round in 0..25 {
        let mut child = start_child(path.to_str().unwrap()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The random state's hash is the only randomness that std has.
        let die_after = RandomState::new().build_hasher().finish() % 60_000;
        let reader = std::thread::spawn(move || {
            let said =
                lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("COMMITTED ")?.parse().ok());
            said.max().unwrap_or(0_u64)
        });
        tokio::time::sleep(Duration::from_millis(40) + Duration::from_micros(die_after)).await;
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "round {round}: it ended by itself");
        let answered = reader.join().unwrap();

        let store = SqliteStore::open(&path).await.unwrap();
        let at = format!("round {round}, killed {die_after} µs after its start");
        assert_eq!(store.check().await.unwrap(), [], "{at}");
        let through = store.books().await.unwrap().epochs.get(&EPOCH).map_or(0, |record| record.through);
        assert!(through >= answered && through >= stored, "{at}: answered {answered}, has {through}");
        drop(store);
        stored = through;
    }
    let rows = export(&path).await.unwrap().rows;
    assert_eq!(u64::try_from(rows.len()).unwrap(), stored, "each row once");
    println!("{stored} rows after 25 kills");
    assert!(stored > 0, "no child lived long enough to commit");
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    drop(SqliteStore::open(&path).await.unwrap());
    let set =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        set(&file.unwrap().path(), 0o444);
    }
    // The lock may be taken; it is the ledger that can't be written.
    set(&dir.path().join("ledger.lock"), 0o666);
    set(dir.path(), 0o555);
    let mut command = start_child(&format!("readonly:{}", path.display()));
    // Permissions don't bind root: then the child is nobody.
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    set(dir.path(), 0o755);
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().find_map(|line| line.strip_prefix("SAID ")).expect("the child said nothing");
    assert!(said.starts_with("true ") && said.contains("can't be"), "{said}");
}
