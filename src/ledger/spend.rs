//! What every account has spent, for status and metrics: a view of the last commit.
//!
//! It decides nothing. It may lag a commit by the time it takes to send the answers.

use super::store::Books;
use plimsoll_core::account::{AccountKey, Amount, LimitKey};
use plimsoll_core::ids::{Epoch, UnixMs};
use plimsoll_core::ledger::{Balance, EpochRecord, Rows, Standing, ended_before};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock};
use tokio::sync::watch;

/// Where one account stands, in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Spent {
    /// Settled.
    pub settled: Amount,
    /// Held by gateways that are lost or whose log proves nothing.
    pub unaccounted: Amount,
    /// Held by live gateways.
    pub outstanding: Amount,
    /// When it was first charged or granted.
    pub counted_since: UnixMs,
    /// Observing only: calls that would not have fitted.
    pub would_refuse: u64,
    /// By how much calls cost more than was reserved for them.
    pub overrun: Amount,
}

impl Spent {
    /// From a balance, given what each epoch is.
    #[must_use]
    pub fn of(balance: &Balance, epochs: &BTreeMap<Epoch, EpochRecord>) -> Self {
        let Standing { settled, unaccounted, outstanding } = balance.standing(epochs);
        let Balance { counted_since, would_refuse, overrun, .. } = *balance;
        Self { settled, unaccounted, outstanding, counted_since, would_refuse, overrun }
    }

    /// Settled and unaccounted: what is used for good.
    #[must_use]
    pub fn used(&self) -> Amount {
        self.settled.plus(self.unaccounted)
    }
}

/// All accounts as of the last commit.
#[derive(Debug)]
pub struct SpendBoard {
    accounts: RwLock<BTreeMap<AccountKey, Spent>>,
    /// Accounts on which *exhausted* stands.
    exhausted: RwLock<BTreeSet<AccountKey>>,
    commits: watch::Sender<u64>,
}

impl SpendBoard {
    pub(super) fn new(books: &Books) -> Self {
        let board = Self {
            accounts: RwLock::default(),
            exhausted: RwLock::default(),
            commits: watch::Sender::new(0),
        };
        board.replace(books);
        board
    }

    /// One account; absent before its first charge or grant.
    #[must_use]
    pub fn get(&self, account: &AccountKey) -> Option<Spent> {
        self.accounts.read().unwrap_or_else(PoisonError::into_inner).get(account).copied()
    }

    /// Whether calls are refused on this account because the rest of it is too small for them.
    #[must_use]
    pub fn is_exhausted(&self, account: &AccountKey) -> bool {
        self.exhausted.read().unwrap_or_else(PoisonError::into_inner).contains(account)
    }

    /// All accounts of a limit, oldest window first.
    #[must_use]
    pub fn of(&self, limit: &LimitKey) -> Vec<(AccountKey, Spent)> {
        let from = AccountKey { limit: limit.clone(), start: UnixMs(i64::MIN), key: String::new() };
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        let of_limit = accounts.range(from..).take_while(|(account, _)| account.limit == *limit);
        of_limit.map(|(account, spent)| (account.clone(), *spent)).collect()
    }

    /// Changes with every commit that moved an account.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }

    pub(super) fn update(&self, moved: Vec<(AccountKey, Spent)>) {
        if moved.is_empty() {
            return;
        }
        self.accounts.write().unwrap_or_else(PoisonError::into_inner).extend(moved);
        self.commits.send_modify(|commits| *commits += 1);
    }

    pub(super) fn set_exhausted<'a>(&self, exhausted: impl Iterator<Item = &'a AccountKey> + Clone) {
        // Compared first: it changes seldom, and steps are many.
        if self.exhausted.read().unwrap_or_else(PoisonError::into_inner).iter().eq(exhausted.clone()) {
            return;
        }
        *self.exhausted.write().unwrap_or_else(PoisonError::into_inner) = exhausted.cloned().collect();
        self.commits.send_modify(|commits| *commits += 1);
    }

    /// Drops accounts whose windows ended before `then`: the store forgets them.
    pub(super) fn forget(&self, then: UnixMs) {
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|account, _| !ended_before(account, then));
    }

    pub(super) fn replace(&self, books: &Books) {
        let spent = books
            .balances
            .iter()
            .map(|(account, balance)| (account.clone(), Spent::of(balance, &books.epochs)));
        *self.accounts.write().unwrap_or_else(PoisonError::into_inner) = spent.collect();
        self.commits.send_modify(|commits| *commits += 1);
    }
}

/// What a step moved.
pub(super) fn moved(rows: &Rows) -> Vec<(AccountKey, Spent)> {
    let changed = rows.changed_balances.iter().filter_map(|account| rows.balances.get_key_value(account));
    changed.map(|(account, balance)| (account.clone(), Spent::of(balance, &rows.epochs))).collect()
}
