//! The ledger's clock: never backwards, whatever the system's does, and never standing still.
//!
//! It names windows, so it goes on from the latest instant that a commit has stored. Where the
//! system's clock is behind that (it was set back, or the store comes from a machine that was ahead), it
//! runs at half speed until the system has caught up.

use plimsoll_core::ids::UnixMs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The ledger's time.
#[derive(Debug)]
pub struct Clock {
    last: Mutex<(UnixMs, Instant)>,
}

impl Clock {
    /// A clock that goes on from `latest`.
    #[must_use]
    pub fn new(latest: UnixMs) -> Self {
        Self { last: Mutex::new((latest, Instant::now())) }
    }

    /// The ledger's time now.
    #[must_use]
    pub fn now(&self) -> UnixMs {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.read(UnixMs(millis(system)), Instant::now())
    }

    fn read(&self, system: UnixMs, at: Instant) -> UnixMs {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, since) = *last;
        let creeping = before.plus(millis(at.saturating_duration_since(since)) / 2);
        let now = system.max(creeping);
        // Moved only with the reading: else half milliseconds would be lost at each call.
        if now > before {
            *last = (now, at);
        }
        now
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_slows_the_ledgers_and_never_turns_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let clock = Clock { last: Mutex::new((UnixMs(10_000), start)) };
        assert_eq!(clock.read(UnixMs(9_000), at(0)), UnixMs(10_000), "the store is ahead of the system");
        for ms in 1..1_000 {
            assert_eq!(clock.read(UnixMs(9_000), at(ms)).0, 10_000 + i64::try_from(ms / 2).unwrap());
        }
        assert_eq!(clock.read(UnixMs(12_000), at(1_000)), UnixMs(12_000), "the system has caught up");
        assert_eq!(clock.read(UnixMs(11_000), at(1_000)), UnixMs(12_000), "and is set back");
    }
}
