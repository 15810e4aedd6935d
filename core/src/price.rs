//! Prices: exact cost of a usage, and the bound of what a call may cost.
//!
//! Rates are nano-dollars per million tokens. Classes are summed in `i128` and rounded up once for
//! a call, so that no order of addition can change a bill. Where rates come from is `plan`'s affair.

use crate::money::NanoUsd;
use crate::usage::Usage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Rates of one model: nano-dollars for a million tokens of each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Input.
    pub input: NanoUsd,
    /// Input read from the cache.
    pub cached_input: NanoUsd,
    /// Input written to the cache.
    pub cache_write: NanoUsd,
    /// Output, reasoning included.
    pub output: NanoUsd,
}

/// The hash of the rates used: equal rates have the same version everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PriceVersion(pub u64);

const MILLION: i128 = 1_000_000;

impl Rates {
    /// What `usage` costs, rounded up to a nano-dollar once.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> NanoUsd {
        let Usage { input, cached_input, cache_write, output, reasoning: _ } = *usage;
        round_up(
            product(self.input, input)
                + product(self.cached_input, cached_input)
                + product(self.cache_write, cache_write)
                + product(self.output, output),
        )
    }

    /// The most that a call can cost: every input token at the dearest input class.
    #[must_use]
    pub fn bound(&self, input: u64, output: u64) -> NanoUsd {
        let dearest = self.input.max(self.cached_input).max(self.cache_write);
        round_up(product(dearest, input) + product(self.output, output))
    }

    /// The version of these rates.
    #[must_use]
    pub fn version(&self) -> PriceVersion {
        let mut hash = Sha256::new();
        for rate in [self.input, self.cached_input, self.cache_write, self.output] {
            hash.update(rate.0.to_be_bytes());
        }
        let digest = hash.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        PriceVersion(u64::from_be_bytes(first))
    }
}

fn product(rate: NanoUsd, tokens: u64) -> i128 {
    i128::from(rate.0) * i128::from(tokens)
}

fn round_up(nanos_by_million: i128) -> NanoUsd {
    let nanos = (nanos_by_million + MILLION - 1).div_euclid(MILLION);
    NanoUsd(i64::try_from(nanos).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPT: Rates = Rates {
        input: NanoUsd(1_250_000_000),
        cached_input: NanoUsd(125_000_000),
        cache_write: NanoUsd(1_250_000_000),
        output: NanoUsd(10_000_000_000),
    };

    #[test]
    fn a_call_is_rounded_up_once_not_once_a_class() {
        let usage = Usage { input: 1000, cached_input: 200, output: 300, ..Usage::default() };
        assert_eq!(GPT.cost(&usage), NanoUsd(1_250_000 + 25_000 + 3_000_000));
        let thirds = Rates {
            input: NanoUsd(1),
            cached_input: NanoUsd(1),
            cache_write: NanoUsd(1),
            output: NanoUsd(1),
        };
        assert_eq!(
            thirds.cost(&Usage { input: 1, cached_input: 1, output: 1, ..Usage::default() }),
            NanoUsd(1)
        );
    }

    #[test]
    fn the_bound_holds_for_every_split_of_the_input() {
        for cached in 0..=100 {
            for written in 0..=(100 - cached) {
                let usage = Usage {
                    input: 100 - cached - written,
                    cached_input: cached,
                    cache_write: written,
                    output: 7,
                    reasoning: 0,
                };
                assert!(GPT.cost(&usage) <= GPT.bound(100, 7));
            }
        }
    }
}
