//! Forgetting in time: beside the commits of the ledger's task, in steps that none of them waits for long.
//!
//! What is old goes; before that, parts of ended windows that hold nothing are folded
//! (`plimsoll_core::ledger::Rows::fold_ended` says why nothing is lost by it).

use super::clock::Clock;
use super::policy_hub::PolicyHub;
use super::spend::SpendBoard;
use super::store::{BALANCES_KEPT_MS, Place, Store, StoreError};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::ledger::{Touched, over_before};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long there is nothing to forget.
const PAUSE: Duration = Duration::from_secs(60);
/// Between two steps while there is.
const BREATH: Duration = Duration::from_millis(200);

/// What forgets.
pub(super) struct Forgetting<S> {
    pub store: Arc<S>,
    pub clock: Arc<Clock>,
    pub hub: Arc<PolicyHub>,
    pub board: Arc<SpendBoard>,
    pub lost_after_ms: i64,
    pub stopped: watch::Receiver<bool>,
}

impl<S: Store> Forgetting<S> {
    /// Until the ledger stops.
    pub(super) async fn run(mut self) {
        // From the first account at each start: what still held something when it was passed is looked at again.
        let mut place = Place::FIRST;
        loop {
            let now = self.clock.now();
            self.hub.forget(now.plus(-self.lost_after_ms), now);
            let more = match self.step(now, &mut place).await {
                Ok(more) => more,
                Err(error) => {
                    tracing::warn!(%error, "what is old could not be forgotten");
                    false
                }
            };
            tokio::select! {
                () = tokio::time::sleep(if more { BREATH } else { PAUSE }) => {}
                _ = self.stopped.changed() => return,
            }
        }
    }

    /// Returns whether there is more to do.
    async fn step(&self, now: UnixMs, place: &mut Place) -> Result<bool, StoreError> {
        let (accounts, next) = self.store.ended(over_before(now), *place).await?;
        if !accounts.is_empty() {
            let touched = Touched { accounts, ..Touched::default() };
            self.store.commit(touched, now, |rows| rows.fold_ended(now)).await?;
        }
        let folded = std::mem::replace(place, next) != next;
        let forgotten = self.store.forget(now).await?;
        if forgotten.balances > 0 {
            self.board.forget(now.plus(-BALANCES_KEPT_MS));
        }
        Ok(folded || forgotten.more)
    }
}
