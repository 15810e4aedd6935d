//! Slices: what one gateway holds of each account.
//!
//! Admission is all-or-nothing over at most 64 accounts, lock-free on the worker. This file never
//! talks to the ledger (see [`crate::gateway`]) and never reads a clock.

use crate::account::{AccountKey, Amount, Charge};
use crate::ids::UnixMs;
use crate::protocol::No;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

/// One account's slice: free and reserved parts.
///
/// `free = granted − returned − settled − reserved`; it is negative while the slice is in debt (a
/// call cost more than its reserve), and the next grant pays.
#[derive(Debug)]
pub struct Slice {
    key: AccountKey,
    /// The account's text, as every admission writes it.
    text: String,
    /// The end of its window; `NEVER` while no policy has named it.
    end: AtomicI64,
    free: AtomicI64,
    reserved: AtomicI64,
    /// Paused requests that are short here: while there is one, no newcomer may take.
    waiting: AtomicU32,
    /// The largest reserve tried since the client thread last looked.
    w_max: AtomicI64,
    /// Everything ever tried here, for the rate; wraps.
    demand: AtomicI64,
    /// *Exhausted*, for reserves of its size or larger: until withdrawn or the ledger's next incarnation.
    exhausted: ArcSwapOption<No>,
    /// *Contended*, for reserves of its size or larger, and until when.
    contended: ArcSwapOption<(No, UnixMs)>,
}

impl Slice {
    pub(crate) fn new(key: AccountKey) -> Self {
        Self {
            text: key.text(),
            key,
            end: AtomicI64::new(UnixMs::NEVER.0),
            free: AtomicI64::new(0),
            reserved: AtomicI64::new(0),
            waiting: AtomicU32::new(0),
            w_max: AtomicI64::new(0),
            demand: AtomicI64::new(0),
            exhausted: ArcSwapOption::empty(),
            contended: ArcSwapOption::empty(),
        }
    }

    /// Its account.
    #[must_use]
    pub fn key(&self) -> &AccountKey {
        &self.key
    }

    /// The end of its window.
    #[must_use]
    pub fn end(&self) -> UnixMs {
        UnixMs(self.end.load(Relaxed))
    }

    pub(crate) fn set_end(&self, end: UnixMs) {
        self.end.store(end.0, Relaxed);
    }

    /// What can be reserved.
    #[must_use]
    pub fn free(&self) -> Amount {
        Amount(self.free.load(Relaxed))
    }

    /// What calls in flight have reserved.
    #[must_use]
    pub fn reserved(&self) -> Amount {
        Amount(self.reserved.load(Relaxed))
    }

    /// Notes what a call wants here, for sizing; once a call.
    pub(crate) fn want(&self, reserve: Amount) {
        // An absurd reserve must not wrap the sum; that it is absurd the ledger will say.
        self.demand.fetch_add(reserve.0.min(1 << 50), Relaxed);
        if reserve.0 > self.w_max.load(Relaxed) {
            self.w_max.fetch_max(reserve.0, Relaxed);
        }
    }

    pub(crate) fn take_w_max(&self) -> Amount {
        Amount(self.w_max.swap(0, Relaxed))
    }

    pub(crate) fn demand(&self) -> i64 {
        self.demand.load(Relaxed)
    }

    pub(crate) fn waits(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    pub(crate) fn mark_waiting(&self) {
        self.waiting.fetch_add(1, SeqCst);
    }

    pub(crate) fn unmark_waiting(&self) {
        self.waiting.fetch_sub(1, SeqCst);
    }

    /// Moves `reserve` from free to reserved, if there is so much. Nothing is asked of a slice that
    /// is to give nothing, not even to be out of debt.
    pub(crate) fn take(&self, reserve: Amount) -> bool {
        if reserve.0 <= 0 {
            return true;
        }
        let taken =
            self.free.fetch_update(SeqCst, SeqCst, |free| (free >= reserve.0).then(|| free - reserve.0));
        if taken.is_ok() {
            self.reserved.fetch_add(reserve.0, SeqCst);
        }
        taken.is_ok()
    }

    /// Undoes [`Slice::take`].
    pub(crate) fn put_back(&self, reserve: Amount) {
        self.settle(reserve, Amount::ZERO);
    }

    fn settle(&self, reserve: Amount, cost: Amount) {
        let reserve = reserve.0.max(0);
        self.reserved.fetch_sub(reserve, SeqCst);
        self.free.fetch_add(reserve - cost.0, SeqCst);
    }

    /// Adds a grant, or takes off what a replayed settlement cost.
    pub(crate) fn add(&self, amount: Amount) {
        self.free.fetch_add(amount.0, SeqCst);
    }

    /// Takes at most `most` of what is free, to return it to the ledger. Gives what it took.
    pub(crate) fn withdraw(&self, most: Amount) -> Amount {
        let mut took = 0;
        let _ = self.free.fetch_update(SeqCst, SeqCst, |free| {
            took = free.min(most.0).max(0);
            (took > 0).then(|| free - took)
        });
        Amount(took.max(0))
    }

    /// The no that applies to `reserve` here, if the slice can't cover it; it then names this reserve.
    pub(crate) fn no(&self, reserve: Amount, now: UnixMs) -> Option<No> {
        if let Some(no) = self.exhausted.load().as_deref()
            && no.reserve <= reserve
        {
            return Some(No { reserve, ..no.clone() });
        }
        match self.contended.load().as_deref() {
            Some((no, until)) if no.reserve <= reserve && now < *until => Some(No { reserve, ..no.clone() }),
            _ => None,
        }
    }

    pub(crate) fn keep_exhausted(&self, no: No) {
        // The smaller reserve refuses more: it wins.
        if self.exhausted.load().as_deref().is_none_or(|kept| no.reserve < kept.reserve) {
            self.exhausted.store(Some(Arc::new(no)));
        }
    }

    pub(crate) fn keep_contended(&self, no: No, until: UnixMs) {
        self.contended.store(Some(Arc::new((no, until))));
    }

    pub(crate) fn forget_exhausted(&self) {
        self.exhausted.store(None);
    }

    pub(crate) fn forget_noes(&self) {
        self.exhausted.store(None);
        self.contended.store(None);
    }
}

/// What an admitted call holds in its accounts. Settle or release it: dropped, its reserves stay taken
/// until the gateway's log is replayed.
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    pub(crate) parts: Vec<(Arc<Slice>, Amount)>,
}

impl Reservation {
    /// Takes every part, or none, and gives them back.
    pub(crate) fn take(parts: Vec<(Arc<Slice>, Amount)>) -> Result<Self, Vec<(Arc<Slice>, Amount)>> {
        for (i, (slice, reserve)) in parts.iter().enumerate() {
            if !slice.take(*reserve) {
                for (slice, reserve) in &parts[..i] {
                    slice.put_back(*reserve);
                }
                return Err(parts);
            }
        }
        Ok(Self { parts })
    }

    /// The accounts that it is charged to.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountKey> {
        self.parts.iter().map(|(slice, _)| &slice.key)
    }

    /// Their texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> + Clone {
        self.parts.iter().map(|(slice, _)| slice.text.as_str())
    }

    /// The attempt cost `charge`; the rest is free again. Write the settlement to the log first.
    /// Returns whether some request waits for what became free (then wake the client thread).
    pub fn settle(self, charge: &Charge) -> bool {
        let mut waited_for = false;
        for (slice, reserve) in &self.parts {
            slice.settle(*reserve, charge.of(slice.key.limit.unit));
            waited_for |= slice.waits();
        }
        waited_for
    }

    /// The call never left: all of it is free again. Returns as [`Reservation::settle`] does.
    pub fn release(self) -> bool {
        self.settle(&Charge::default())
    }
}
