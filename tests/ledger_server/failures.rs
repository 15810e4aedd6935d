//! A full disk, a restored backup: what the ledger says and does when its store fails it.

use super::fixture::*;
use plimsoll::ledger::sqlite::retire;
use plimsoll::ledger::{LedgerState, SqliteStore, Store, Transport, start};
use plimsoll_core::account::AccountKey;
use plimsoll_core::ids::UnixMs;
use plimsoll_core::ledger::{Rows, Touched};
use plimsoll_core::protocol::{AskId, FromGateway, NoKind, Report};
use std::sync::Arc;
use tokio::time::timeout;

#[tokio::test]
async fn a_full_disk_is_a_clear_state_and_nothing_is_granted_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path().join("l")).await.unwrap());
    let ledger = start(settings(Transport::PlainText), Shared(Arc::clone(&store))).await.unwrap();
    ledger.publish(terms(5), vec![], vec![]).await;
    let (mut gateway, first) = Gateway::greet(channel(&ledger).await, "gw", 1, vec![]).await;
    gateway.say(ask(1, DOLLAR)).await;
    let granted = gateway.answer(|answer| answer.earmarks == [AskId(1)]).await.grants[0].granted;
    // As many pages as it has: the next row that needs one fails.
    store.set_max_pages(1).await;
    let mut state = ledger.state();
    let rows: Vec<_> = (0..2_000).map(|n| row(2 * n + 1, 1, ledger.now())).collect();
    let through = 2 * 2_000;
    let report =
        Report { totals: vec![totals(granted.0, 0, 2_000)], rows, after: 0, through, refills: vec![] };
    gateway.say(FromGateway::Report(report.clone())).await;
    let status = gateway.ended().await;
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    let failed =
        timeout(SOON, state.wait_for(|state| *state != LedgerState::Serving)).await.unwrap().unwrap().clone();
    let LedgerState::Failed { why } = failed else { panic!("{failed:?}") };
    assert!(why.contains("full"), "{why}");

    store.set_max_pages(0).await;
    timeout(SOON, state.wait_for(|state| *state == LedgerState::Serving)).await.unwrap().unwrap();
    let (mut gateway, again) =
        Gateway::greet(channel(&ledger).await, "gw", 1, vec![totals(granted.0, 0, 0)]).await;
    assert_ne!(again.incarnation, first.incarnation, "noes of the life that failed are void");
    assert_eq!((again.durable, again.holdings[0].granted, again.went_back), (0, granted, false));
    gateway.say(FromGateway::Report(report)).await;
    gateway.answer(|answer| answer.durable == through).await;
    assert_eq!(store.check().await.unwrap(), []);
    ledger.shutdown().await;
}

/// A store that the test keeps a hand on.
struct Shared(Arc<SqliteStore>);

impl Store for Shared {
    fn identity(&self) -> &plimsoll::ledger::Identity {
        self.0.identity()
    }
    fn path(&self) -> &std::path::Path {
        self.0.path()
    }
    fn latest(&self) -> UnixMs {
        self.0.latest()
    }
    async fn commit<T: Send>(
        &self,
        touched: Touched,
        now: UnixMs,
        step: impl FnOnce(&mut Rows) -> T + Send,
    ) -> Result<T, plimsoll::ledger::StoreError> {
        self.0.commit(touched, now, step).await
    }
    async fn probe(&self, now: UnixMs) -> Result<(), plimsoll::ledger::StoreError> {
        self.0.probe(now).await
    }
    async fn remembered(
        &self,
    ) -> Result<Vec<plimsoll_core::policy::PolicyObject>, plimsoll::ledger::StoreError> {
        self.0.remembered().await
    }
    async fn remember(
        &self,
        changed: Vec<plimsoll_core::policy::PolicyObject>,
        removed: Vec<plimsoll_core::policy::PolicyKey>,
    ) -> Result<(), plimsoll::ledger::StoreError> {
        self.0.remember(changed, removed).await
    }
    async fn books(&self) -> Result<plimsoll::ledger::Books, plimsoll::ledger::StoreError> {
        self.0.books().await
    }
    async fn ended(
        &self,
        before: UnixMs,
        from: plimsoll::ledger::store::Place,
    ) -> Result<
        (std::collections::BTreeSet<AccountKey>, plimsoll::ledger::store::Place),
        plimsoll::ledger::StoreError,
    > {
        self.0.ended(before, from).await
    }
    async fn forget(
        &self,
        now: UnixMs,
    ) -> Result<plimsoll::ledger::store::Forgotten, plimsoll::ledger::StoreError> {
        self.0.forget(now).await
    }
}

#[tokio::test]
async fn a_ledger_that_was_restored_from_a_backup_says_that_it_went_back() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    ledger.set_limits(terms(5)).await;
    let (_other, _) = Gateway::greet(channel(&ledger).await, "other", 2, vec![]).await;
    ledger.shutdown().await;
    let ledger = serve(&dir.path().join("l")).await;
    ledger.set_limits(terms(5)).await;
    let (_gateway, welcome) =
        Gateway::greet(channel(&ledger).await, "gw", 1, vec![totals(DOLLAR, 0, 0)]).await;
    assert!(welcome.went_back);
    let mut state = ledger.state();
    timeout(SOON, state.wait_for(|state| *state == LedgerState::WentBack)).await.unwrap().unwrap();
    let (_other, _) = Gateway::greet(channel(&ledger).await, "other", 2, vec![]).await;
    timeout(SOON, state.wait_for(|state| *state == LedgerState::Serving)).await.unwrap().unwrap();
    ledger.shutdown().await;
}

#[tokio::test]
async fn a_ledger_that_went_back_and_starts_again_still_grants_nothing_until_every_gateway_has_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let ledger = serve(&path).await;
    ledger.set_limits(terms(5)).await;
    for (id, epoch) in [("a", 1), ("b", 2), ("gone", 3)] {
        let (gateway, _) = Gateway::greet(channel(&ledger).await, id, epoch, vec![]).await;
        gateway.end().await;
    }
    // It holds a dollar that this ledger knows nothing of: the others may as well.
    let held = vec![totals(DOLLAR, 0, 0)];
    let (_a, welcome) = Gateway::greet(channel(&ledger).await, "a", 1, held.clone()).await;
    assert!(welcome.went_back);
    ledger.shutdown().await;

    let ledger = serve(&path).await;
    ledger.set_limits(terms(5)).await;
    let mut state = ledger.state();
    assert_eq!(*state.borrow(), LedgerState::WentBack, "it is said before anybody connects");
    // What it holds is known by now: only the store can tell that others are missing.
    let (mut a, welcome) = Gateway::greet(channel(&ledger).await, "a", 1, held.clone()).await;
    assert!(welcome.went_back);
    a.say(ask(1, DOLLAR)).await;
    let answer = a.answer(|answer| !answer.noes.is_empty() || !answer.earmarks.is_empty()).await;
    assert_eq!((answer.earmarks.len(), answer.noes[0].kind), (0, NoKind::Contended));
    let (_b, welcome) = Gateway::greet(channel(&ledger).await, "b", 2, vec![]).await;
    assert!(welcome.went_back, "one is still missing");

    let now = ledger.now();
    assert_eq!(retire(&path, "a", now).await.unwrap(), 0, "one that has spoken is left alone");
    assert_eq!(retire(&path, "gone", now).await.unwrap(), 1);
    a.say(ask(2, DOLLAR)).await;
    a.answer(|answer| answer.earmarks == [AskId(2)]).await;
    timeout(SOON, state.wait_for(|state| *state == LedgerState::Serving)).await.unwrap().unwrap();
    let (_gone, welcome) = Gateway::greet(channel(&ledger).await, "gone", 3, held).await;
    assert!(welcome.epoch_closed, "who was retired begins anew");
    ledger.shutdown().await;
}
