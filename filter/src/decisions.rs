//! Decision records on their way to the ledger: a bounded queue that drops the oldest.

use plimsoll_core::protocol::Decision;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Records kept while the ledger does not take them.
const MOST: usize = 10_000;

/// The queue.
#[derive(Debug)]
pub struct Decisions {
    most: usize,
    queue: Mutex<VecDeque<Decision>>,
}

impl Decisions {
    /// A queue that holds 10,000 records, or all of them.
    #[must_use]
    pub fn new(uncapped: bool) -> Self {
        Self { most: if uncapped { usize::MAX } else { MOST }, queue: Mutex::default() }
    }

    /// Adds a record. Returns how many were dropped for it.
    pub fn push(&self, decision: Decision) -> u64 {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(decision);
        if queue.len() > self.most {
            queue.pop_front();
            return 1;
        }
        0
    }

    /// Adds the record of a call that was sent, while half of the places are free: refusals go first.
    pub fn offer(&self, decision: impl FnOnce() -> Decision) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() < self.most / 2 {
            queue.push_back(decision());
        }
    }

    /// Records that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the oldest records, at most `most`.
    pub fn take(&self, most: usize) -> Vec<Decision> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let count = queue.len().min(most);
        queue.drain(..count).collect()
    }
}
