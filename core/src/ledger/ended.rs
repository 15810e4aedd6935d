//! Ended windows: when an epoch's part of an account is folded, and what may still be said of it.
//!
//! A part is cumulative totals by which late and doubled messages are known. Kept for ever it is a row for
//! every minute, limit and gateway; so a day after its window's end a part that holds nothing joins the
//! account's sums. From then on the totals of that (epoch, account) mean nothing here, whenever they come,
//! and only usage rows move it. That counts nothing twice and loses nothing: rows are numbered, and a row up
//! to the epoch's `through` is taken once (`Ledger::take_report`). No mark is needed to know a folded part:
//! the ledger's clock never goes back, nothing is granted in an ended window, and no part begins after that
//! day, so a part that is absent then was folded or never was.
//!
//! What still holds something stays: a call may be in flight, or its gateway silent (unaccounted).

use super::{Ledger, Rows};
use crate::account::{AccountKey, Amount};
use crate::ids::{Epoch, UnixMs};
use crate::window::WindowSpec;

/// How long after a window's end a part that holds nothing is kept, in milliseconds.
const KEPT_MS: i64 = 86_400_000;

/// How often the serving process looks for such windows.
const LOOK_MS: i64 = 3_600_000;

/// The latest end of windows that are over at `now`: parts in them that hold nothing are folded.
#[must_use]
pub fn over_before(now: UnixMs) -> UnixMs {
    now.plus(-KEPT_MS)
}

/// Whether the account's window ended before `then`; one that means nothing here never ends.
#[must_use]
pub fn ended_before(account: &AccountKey, then: UnixMs) -> bool {
    // No window ends before it starts: most are passed without a calendar.
    let ended = |spec: WindowSpec| spec.bounds(account.start).end < then;
    account.start < then && account.limit.window.parse().is_ok_and(ended)
}

fn is_over(account: &AccountKey, now: UnixMs) -> bool {
    ended_before(account, over_before(now))
}

impl Ledger {
    /// Forgets what was said of slices and refused in windows that are over. Gateways return what is free
    /// there without a recall.
    pub(super) fn forget_ended(&mut self, now: UnixMs) {
        if now.since(self.looked_for_ended) < LOOK_MS {
            return;
        }
        self.looked_for_ended = now;
        self.slices.retain(|account, _| !is_over(account, now));
        self.exhausted.retain(|account, _| !is_over(account, now));
    }
}

impl Rows {
    /// Folds every part in `balances` that holds nothing, of windows that are over. Returns how many.
    pub fn fold_ended(&mut self, now: UnixMs) -> usize {
        let empty = |(account, balance): (&AccountKey, &super::Balance)| {
            let parts = balance.held.iter().filter(|(_, held)| held.outstanding() == Amount::ZERO);
            parts.map(|(epoch, _)| (account.clone(), *epoch)).collect::<Vec<_>>()
        };
        let empty: Vec<_> = self.balances.iter().flat_map(empty).collect();
        empty.into_iter().filter(|(account, epoch)| self.fold_part(account, *epoch, now)).count()
    }

    /// Whether `epoch` has no part of `account` and will have none: its window is over.
    pub(super) fn is_folded(&self, account: &AccountKey, epoch: Epoch, now: UnixMs) -> bool {
        let has_part = self.balances.get(account).is_some_and(|balance| balance.held.contains_key(&epoch));
        !has_part && is_over(account, now)
    }

    /// Folds one part if it holds nothing and its window is over.
    pub(super) fn fold_part(&mut self, account: &AccountKey, epoch: Epoch, now: UnixMs) -> bool {
        let Some(balance) = self.balances.get_mut(account) else { return false };
        let Some(held) = balance.held.get(&epoch).copied() else { return false };
        if held.outstanding() > Amount::ZERO || !is_over(account, now) {
            return false;
        }
        balance.held.remove(&epoch);
        balance.settled = balance.settled.plus(held.settled);
        self.changed_balances.insert(account.clone());
        true
    }

    /// Adds what rows say that `epoch` settled in `account`.
    pub(super) fn settle(&mut self, account: &AccountKey, epoch: Epoch, sum: Amount, now: UnixMs) {
        let settled = if self.is_folded(account, epoch, now) {
            &mut self.balance_mut(account, now).settled
        } else {
            &mut self.held_mut(account, epoch, now).settled
        };
        *settled = settled.plus(sum);
    }
}
