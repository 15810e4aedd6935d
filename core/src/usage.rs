//! Usage: what a call consumed, in disjoint token classes.
//!
//! How usage is read out of an answer stands in [`crate::meter`]; what it costs in [`crate::price`].

use serde::{Deserialize, Serialize};

/// Tokens by disjoint class: each token stands in exactly one of the first four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Input tokens that were neither read from nor written to a cache.
    pub input: u64,
    /// Input tokens read from the provider's cache.
    pub cached_input: u64,
    /// Input tokens written to the provider's cache, where it bills them apart.
    pub cache_write: u64,
    /// Output tokens, reasoning included.
    pub output: u64,
    /// Memo: those of `output` that were reasoning.
    pub reasoning: u64,
}

impl Usage {
    /// All tokens, each once.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.input
            .saturating_add(self.cached_input)
            .saturating_add(self.cache_write)
            .saturating_add(self.output)
    }
}
