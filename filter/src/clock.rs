//! The ledger's time at the gateway: what the ledger said last, and what has passed since; never backwards.

use plimsoll_core::ids::UnixMs;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Instant;

/// A clock that follows the ledger's. The node's own wall clock is never asked.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// Ledger's time − time since `start`; `i64::MIN` before the ledger spoke.
    offset: AtomicI64,
    /// The latest instant that was given out.
    last: AtomicI64,
}

impl Clock {
    /// A clock that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now(), offset: AtomicI64::new(i64::MIN), last: AtomicI64::new(0) }
    }

    fn elapsed(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// The ledger said that it is `now`, a moment ago.
    pub fn heard(&self, now: UnixMs) {
        let heard = now.0.saturating_sub(self.elapsed());
        let held = self.offset.load(Relaxed);
        // Messages only come late, so the highest offset is the best one; but a clock of ours that is too fast
        // must come back, slowly.
        let offset = if heard >= held { heard } else { held - (held - heard) / 16 };
        self.offset.store(if held == i64::MIN { heard } else { offset }, Relaxed);
    }

    /// The ledger's time. Before the ledger spoke: the time since the start.
    pub fn now(&self) -> UnixMs {
        let offset = self.offset.load(Relaxed);
        let now = self.elapsed().saturating_add(if offset == i64::MIN { 0 } else { offset });
        UnixMs(self.last.fetch_max(now, Relaxed).max(now))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_follows_the_ledger_and_never_goes_back() {
        let clock = Clock::new();
        clock.heard(UnixMs(1_000_000));
        let first = clock.now();
        assert!((1_000_000..1_000_100).contains(&first.0));
        clock.heard(UnixMs(500_000));
        assert!(clock.now() >= first);
        clock.heard(UnixMs(2_000_000));
        assert!(clock.now().0 >= 2_000_000);
    }
}
