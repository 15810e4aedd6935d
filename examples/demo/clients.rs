//! What clients got: refusals by the limit that refused and the gateway that said so, answers by feature.

use plimsoll_sim::replay::Answer;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A budget and one of its limits, as answers name them: `finance/search`, `minute`.
pub type LimitName = (String, String);

/// Counted while traffic runs.
#[derive(Debug, Default)]
pub struct Clients(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    refused: BTreeMap<LimitName, Refused>,
    served: BTreeMap<Arc<str>, u64>,
}

/// Refusals by one limit.
#[derive(Clone, Debug, Default)]
pub struct Refused {
    /// All of them.
    pub count: u64,
    /// When the last one came, by the gateway's URL.
    pub last: BTreeMap<Arc<str>, Instant>,
}

impl Clients {
    /// Counts an answer.
    pub fn note(&self, answer: &Answer) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.said.status == 200 {
            *counts.served.entry(answer.feature.clone()).or_default() += 1;
        }
        if let (Some(budget), Some(limit)) = (&answer.said.budget, &answer.said.limit) {
            let refused = counts.refused.entry((budget.clone(), limit.clone())).or_default();
            refused.count += 1;
            refused.last.insert(answer.target.clone(), Instant::now());
        }
    }

    /// What `limit` refused so far.
    pub fn refused(&self, limit: &LimitName) -> Refused {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.refused.get(limit).cloned().unwrap_or_default()
    }

    /// How many calls of `feature` were answered.
    pub fn served(&self, feature: &str) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).served.get(feature).copied().unwrap_or(0)
    }
}
