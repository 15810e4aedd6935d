//! The durable half of the ledger: balances and epochs, as one step reads and changes them.
//!
//! The store fills [`Rows`] in and saves what changed; the arithmetic of an account stands here.

use crate::account::{AccountKey, Amount};
use crate::ids::{Epoch, UnixMs};
use crate::protocol::{Decision, UsageRow};
use std::collections::{BTreeMap, BTreeSet};

/// One epoch's part of an account; cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Held {
    /// Granted.
    pub granted: Amount,
    /// Returned.
    pub returned: Amount,
    /// Settled.
    pub settled: Amount,
}

/// What the store holds of one account.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Balance {
    /// Settled by epochs that are folded in.
    pub settled: Amount,
    /// Held by epochs whose log proves nothing.
    pub unaccounted: Amount,
    /// When the account was first charged or granted.
    pub counted_since: UnixMs,
    /// Observing only: calls that would not have fitted.
    pub would_refuse: u64,
    /// By how much calls cost more than was reserved for them: what can break the promise (DESIGN I1).
    pub overrun: Amount,
    /// Epochs that hold something or have not been folded.
    pub held: BTreeMap<Epoch, Held>,
}

/// What an epoch is to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum EpochState {
    /// Its gateway lives, or was heard lately.
    #[default]
    Live,
    /// Silent too long: what it holds counts as unaccounted until it says Hello with an intact log.
    Lost,
    /// Closed, or its log proves nothing: accepts nothing more.
    Closed,
}

/// What the store holds of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EpochRecord {
    /// The gateway's id.
    pub gateway: String,
    /// Settlements up to this sequence are stored.
    pub through: u64,
    /// Its state.
    pub state: EpochState,
    /// When it was last heard.
    pub heard: UnixMs,
    /// Commits are known to be lost, and it has not said Hello since: what it holds may be more than stands
    /// here. While an open epoch is so, nothing is granted.
    pub undeclared: bool,
}

/// The rows of one commit. The store fills in what [`Ledger::touches`] names (absent rows stay absent)
/// and saves what is in `changed_*`.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Balances by account.
    pub balances: BTreeMap<AccountKey, Balance>,
    /// Epochs. The store fills in every epoch that is not closed, and those named.
    pub epochs: BTreeMap<Epoch, EpochRecord>,
    /// Balances to save.
    pub changed_balances: BTreeSet<AccountKey>,
    /// Epochs to save.
    pub changed_epochs: BTreeSet<Epoch>,
    /// Usage rows to insert; (epoch, sequence) is unique, and the bucket of each is moved with it.
    pub usage: Vec<(Epoch, UsageRow)>,
    /// The accounts that a row (by epoch and sequence) was counted in for its observing budgets.
    pub observed: BTreeMap<(Epoch, u64), Vec<AccountKey>>,
    /// Decisions to insert (kept 24 h, capped).
    pub decisions: Vec<(Epoch, Decision)>,
}

/// Where an account stands: the sums that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Standing {
    /// Settled, by all epochs.
    pub settled: Amount,
    /// Held by gateways that are lost or whose log proves nothing.
    pub unaccounted: Amount,
    /// Held by live gateways: slices, reserved or free.
    pub outstanding: Amount,
}

impl Standing {
    /// Settled and unaccounted: what is used for good.
    #[must_use]
    pub fn used(&self) -> Amount {
        self.settled.plus(self.unaccounted)
    }

    /// All that is used or given out; I1 says that it never exceeds the amount.
    #[must_use]
    pub fn committed(&self) -> Amount {
        self.used().plus(self.outstanding)
    }
}

impl Held {
    /// What the epoch's slice holds; a slice in debt holds nothing.
    #[must_use]
    pub fn outstanding(&self) -> Amount {
        self.granted.minus(self.returned).minus(self.settled).max(Amount::ZERO)
    }
}

impl Balance {
    /// Its sums, given what each epoch is.
    #[must_use]
    pub fn standing(&self, epochs: &BTreeMap<Epoch, EpochRecord>) -> Standing {
        let mut standing =
            Standing { settled: self.settled, unaccounted: self.unaccounted, outstanding: Amount::ZERO };
        for (epoch, held) in &self.held {
            standing.settled = standing.settled.plus(held.settled);
            let outstanding = held.outstanding();
            match epochs.get(epoch).map_or(EpochState::Live, |record| record.state) {
                EpochState::Live => standing.outstanding = standing.outstanding.plus(outstanding),
                EpochState::Lost | EpochState::Closed => {
                    standing.unaccounted = standing.unaccounted.plus(outstanding)
                }
            }
        }
        standing
    }
}

impl Rows {
    /// Where `account` stands.
    #[must_use]
    pub fn standing(&self, account: &AccountKey) -> Standing {
        self.balances.get(account).map(|balance| balance.standing(&self.epochs)).unwrap_or_default()
    }

    /// Whether commits are known to be lost and some known gateway has not declared itself since. It is
    /// durable: a ledger that starts again must not grant what it no longer knows of.
    #[must_use]
    pub fn went_back(&self) -> bool {
        self.undeclared().next().is_some()
    }

    /// The gateways that have yet to declare themselves, by epoch.
    pub fn undeclared(&self) -> impl Iterator<Item = (Epoch, &str)> {
        let open = self.epochs.iter().filter(|(_, record)| record.state != EpochState::Closed);
        open.filter(|(_, record)| record.undeclared).map(|(epoch, record)| (*epoch, record.gateway.as_str()))
    }

    /// Commits are known to be lost: of the open epochs only those that have `declared` themselves are
    /// believed.
    pub(super) fn go_back(&mut self, declared: impl Fn(&Epoch) -> bool) {
        let open = self.epochs.iter().filter(|(_, record)| record.state != EpochState::Closed);
        let silent: Vec<Epoch> = open.map(|(epoch, _)| *epoch).filter(|epoch| !declared(epoch)).collect();
        for epoch in silent {
            self.epoch_mut(epoch).undeclared = true;
        }
    }

    /// Retires `gateway` by hand: each epoch of it that has not declared itself ends, and what it is known to
    /// hold is unaccounted. One that has said Hello is left alone. Returns how many ended. The rows must hold
    /// every balance of the gateway's open epochs ([`Touched::all_of_gateways`](super::Touched)).
    pub fn retire(&mut self, gateway: &str) -> usize {
        let of_gateway = self.undeclared().filter(|(_, of)| *of == gateway);
        let ended: Vec<Epoch> = of_gateway.map(|(epoch, _)| epoch).collect();
        ended.iter().for_each(|epoch| self.fold(*epoch));
        ended.len()
    }

    pub(super) fn held(&self, account: &AccountKey, epoch: Epoch) -> Held {
        self.balances.get(account).and_then(|balance| balance.held.get(&epoch)).copied().unwrap_or_default()
    }

    pub(super) fn balance_mut(&mut self, account: &AccountKey, now: UnixMs) -> &mut Balance {
        self.changed_balances.insert(account.clone());
        self.balances
            .entry(account.clone())
            .or_insert_with(|| Balance { counted_since: now, ..Balance::default() })
    }

    pub(super) fn held_mut(&mut self, account: &AccountKey, epoch: Epoch, now: UnixMs) -> &mut Held {
        self.balance_mut(account, now).held.entry(epoch).or_default()
    }

    pub(super) fn epoch_mut(&mut self, epoch: Epoch) -> &mut EpochRecord {
        self.changed_epochs.insert(epoch);
        self.epochs.entry(epoch).or_default()
    }

    /// `epoch` ends: what it settled stays settled, what it holds is unaccounted, and it accepts no more.
    pub(super) fn fold(&mut self, epoch: Epoch) {
        let record = self.epoch_mut(epoch);
        (record.state, record.undeclared) = (EpochState::Closed, false);
        for (account, balance) in &mut self.balances {
            if let Some(held) = balance.held.remove(&epoch) {
                balance.settled = balance.settled.plus(held.settled);
                balance.unaccounted = balance.unaccounted.plus(held.outstanding());
                self.changed_balances.insert(account.clone());
            }
        }
    }
}
