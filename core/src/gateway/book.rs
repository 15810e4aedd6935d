//! Books: the client thread's account of one slice: cumulative totals, size, recall, refills.
//!
//! The slice itself (what workers take from) is [`crate::slice::Slice`].

use crate::account::{AccountKey, Amount};
use crate::ids::UnixMs;
use crate::protocol::{Grant, Holding, Totals};
use crate::slice::Slice;
use crate::window::WindowSpec;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Over how long the rate is smoothed.
const RATE_MS: i64 = 30_000;
/// How long the largest reserve is remembered at least (at most twice as long).
const W_MAX_MS: i64 = 60_000;
/// How soon a refill that brought nothing is asked for again.
const REFILL_AGAIN_MS: i64 = 5_000;
/// How often a recalled slice speaks up even if nothing changed.
const RECALLED_AGAIN_MS: i64 = 5_000;

/// What was last reported; compared for every slice, so it owns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    granted: Amount,
    returned: Amount,
    settled: Amount,
    reserved: Amount,
    recall_seen: u64,
}

#[derive(Debug)]
pub(super) struct Book {
    pub slice: Arc<Slice>,
    pub granted: Amount,
    pub returned: Amount,
    /// Of the rows that were put into reports.
    pub settled: Amount,
    /// Of the rows that the ledger has stored.
    pub stored: Amount,
    pub small: bool,
    pub recalled: bool,
    pub rate: Amount,
    recall: u64,
    /// What it should hold; `None` until the ledger has said so on this stream.
    size: Option<Amount>,
    /// What was free right after the last grant.
    surplus: Amount,
    refill_asked: Option<UnixMs>,
    w_max: (Amount, Amount),
    w_max_since: UnixMs,
    demand: i64,
    measured: Option<(UnixMs, UnixMs)>,
    reported: Option<(Said, UnixMs)>,
}

impl Book {
    pub fn new(key: AccountKey) -> Self {
        let window = key.limit.window.parse::<WindowSpec>().map(|spec| spec.bounds(key.start));
        let slice = Slice::new(key);
        // The policy's bounds decide; until they come, or when they are past, this tells when the book closes.
        slice.set_end(window.map_or(UnixMs::NEVER, |bounds| bounds.end));
        Self {
            slice: Arc::new(slice),
            granted: Amount::ZERO,
            returned: Amount::ZERO,
            settled: Amount::ZERO,
            stored: Amount::ZERO,
            small: false,
            recalled: false,
            rate: Amount::ZERO,
            recall: 0,
            size: None,
            surplus: Amount::ZERO,
            refill_asked: None,
            w_max: (Amount::ZERO, Amount::ZERO),
            w_max_since: UnixMs(0),
            demand: 0,
            measured: None,
            reported: None,
        }
    }

    /// Rows after the stored ones travel again, and with them the totals.
    pub fn rewind(&mut self) {
        self.settled = self.stored;
        self.reported = None;
    }

    pub fn w_max(&self) -> Amount {
        self.w_max.0.max(self.w_max.1)
    }

    /// A new stream: the ledger's Welcome says what it has of us; rows after its `durable` travel again.
    pub fn begin_stream(&mut self) {
        self.settled = self.stored;
        self.reported = None;
        self.size = None;
        self.refill_asked = None;
        (self.recall, self.recalled) = (0, false);
    }

    /// Takes over what the ledger knows. After a restart that is everything.
    pub fn adopt(&mut self, holding: &Holding) {
        let Holding { account: _, granted, returned, settled } = holding;
        let fresh =
            self.granted == Amount::ZERO && self.returned == Amount::ZERO && self.stored == Amount::ZERO;
        let granted = (*granted).max(self.granted);
        self.slice.add(granted.minus(self.granted));
        self.granted = granted;
        if fresh {
            // What is not in our memory was returned or settled by the process before us.
            self.slice.add(Amount::ZERO.minus(*returned).minus(*settled));
            self.returned = *returned;
            self.stored = *settled;
        }
        self.settled = *settled;
        self.surplus = self.surplus.max(self.slice.free());
    }

    pub fn grant(&mut self, grant: &Grant) {
        let Grant { account: _, granted, size, small, recall, recalled } = grant;
        if *granted > self.granted {
            self.slice.add(granted.minus(self.granted));
            self.granted = *granted;
            self.surplus = self.slice.free().max(Amount::ZERO);
            self.refill_asked = None;
        }
        if *recall >= self.recall {
            (self.recall, self.recalled) = (*recall, *recalled);
        }
        (self.size, self.small) = (Some(*size), *small);
    }

    /// Returns what is free while recalled or out of force, and what exceeds twice the size. Says whether
    /// it can't wait: an ask waits for it elsewhere.
    pub fn give_back(&mut self, in_force: bool) -> bool {
        let free = self.slice.free();
        let excess = if self.recalled || !in_force {
            free
        } else {
            let holds = free.plus(self.slice.reserved());
            match self.size {
                Some(size) if holds.0 > size.0.saturating_mul(2) => holds.minus(size).min(free),
                Some(_) | None => return false,
            }
        };
        let returned = self.slice.withdraw(excess);
        self.returned = self.returned.plus(returned);
        self.surplus = self.surplus.min(self.slice.free().max(Amount::ZERO));
        self.recalled && returned > Amount::ZERO
    }

    /// Whether anything was ever held or wanted here.
    pub fn is_used(&self) -> bool {
        self.granted > Amount::ZERO || self.settled > Amount::ZERO || self.slice.demand() != 0
    }

    /// Whether it runs low: under 80 % of what the last grant left free (at half, 18 % of calls failed in a
    /// ten-minute outage), or a fifth where the account is small.
    pub fn wants_refill(&mut self, now: UnixMs) -> bool {
        let (free, reserved) = (self.slice.free(), self.slice.reserved());
        let low = if self.small { self.surplus.0 / 5 } else { self.surplus.0 / 5 * 4 };
        let wants = self.may_ask(now)
            && self.granted > Amount::ZERO
            && self.demand != 0
            && free.0 < low
            && self.size.is_some_and(|size| free.plus(reserved) < size);
        self.note_asked(wants, now)
    }

    /// Whether the slice of a window that has not begun should be asked for now: at a moment of its own, so that
    /// gateways and limits don't ask all at once. `pace` is what its limit takes: rate, largest reserve.
    pub fn wants_first(
        &mut self,
        gateway: &str,
        pace: (Amount, Amount),
        ride_through_ms: i64,
        now: UnixMs,
    ) -> bool {
        let ahead = self.slice.key().start.since(now);
        let wants = self.may_ask(now)
            && self.granted == Amount::ZERO
            && ahead <= self.moment(gateway, ride_through_ms);
        if wants {
            (self.rate, self.w_max.0) = pace;
        }
        self.note_asked(wants, now)
    }

    fn may_ask(&self, now: UnixMs) -> bool {
        let just_asked = self.refill_asked.is_some_and(|at| now.since(at) < REFILL_AGAIN_MS);
        !self.recalled && !self.slice.waits() && !just_asked
    }

    fn note_asked(&mut self, wants: bool, now: UnixMs) -> bool {
        if wants {
            self.refill_asked = Some(now);
        }
        wants
    }

    /// How long before its start a window's slice is asked for: between a tenth and all of `rideThrough`.
    fn moment(&self, gateway: &str, ride_through_ms: i64) -> i64 {
        let mut hash = DefaultHasher::new();
        (gateway, self.slice.key()).hash(&mut hash);
        let share = i64::try_from(hash.finish() % 900).unwrap_or(0) + 100;
        ride_through_ms / 1_000 * share
    }

    /// Brings rate and largest reserve up to date.
    pub fn measure(&mut self, now: UnixMs) {
        let (begun, last) = *self.measured.get_or_insert((now, now));
        let recent = self.slice.take_w_max();
        self.w_max.0 = self.w_max.0.max(recent);
        if now.since(self.w_max_since) > W_MAX_MS {
            self.w_max = (recent, self.w_max.0);
            self.w_max_since = now;
        }
        let elapsed = now.since(last);
        if elapsed < 500 {
            return;
        }
        let demand = self.slice.demand();
        let by_second = i128::from(demand.wrapping_sub(self.demand)) * 1_000 / i128::from(elapsed);
        self.demand = demand;
        // The mean since it began, until that is longer than the smoothing.
        let span = i128::from(now.since(begun).clamp(elapsed, RATE_MS.max(elapsed)));
        let rate =
            i128::from(self.rate.0) + (by_second - i128::from(self.rate.0)) * i128::from(elapsed) / span;
        self.rate = Amount(i64::try_from(rate.max(0)).unwrap_or(i64::MAX));
        self.measured = Some((begun, now));
    }

    pub fn totals(&self) -> Totals {
        Totals {
            account: self.slice.key().clone(),
            granted: self.granted,
            returned: self.returned,
            settled: self.settled,
            reserved: self.slice.reserved(),
            rate: self.rate,
            w_max: self.w_max(),
            recall_seen: self.recall,
        }
    }

    fn said(&self) -> Said {
        Said {
            granted: self.granted,
            returned: self.returned,
            settled: self.settled,
            reserved: self.slice.reserved(),
            recall_seen: self.recall,
        }
    }

    /// Whether the ledger should hear of it: its totals moved.
    pub fn changed(&self, now: UnixMs) -> bool {
        match self.reported {
            None => self.granted > Amount::ZERO || self.settled > Amount::ZERO,
            // What a recalled slice returned is waited for: a lost report must not hide it.
            Some((said, at)) => self.said() != said || (self.recalled && now.since(at) >= RECALLED_AGAIN_MS),
        }
    }

    pub fn report(&mut self, now: UnixMs) -> Totals {
        self.reported = Some((self.said(), now));
        self.totals()
    }

    /// Whether the ledger has heard everything there will ever be to say of it: nothing is free or in flight,
    /// and all that was settled is stored (rows that still wait in the log make the sums differ).
    pub fn is_spent(&self) -> bool {
        let free = self.slice.free();
        Arc::strong_count(&self.slice) == 1
            && self.slice.reserved() == Amount::ZERO
            && free <= Amount::ZERO
            && free == self.granted.minus(self.returned).minus(self.stored)
            && self.reported.is_some_and(|(said, _)| said == self.said())
    }
}
