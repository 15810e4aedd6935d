//! Money: integer nano-dollars, exact at every step.
//!
//! One type, parsed from and shown as a decimal string. Rates and the cost of a call stand in
//! [`crate::price`]; no float exists here or there.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// An amount of US dollars in nano-dollars (1e-9 USD). The range is ±9.2 billion dollars.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NanoUsd(pub i64);

/// Nano-dollars in one dollar.
pub const NANOS_PER_USD: i64 = 1_000_000_000;

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not `[-]digits[.digits]`.
    #[error("\"{0}\" is not a decimal number; write it like \"12.50\"")]
    NotDecimal(String),
    /// More than nine digits after the point.
    #[error("\"{0}\" has more than nine decimal places; a nano-dollar is the smallest amount")]
    TooFine(String),
    /// Beyond ±9.2 billion.
    #[error("\"{0}\" is too large; the largest amount is 9200000000")]
    TooLarge(String),
}

impl NanoUsd {
    /// No money.
    pub const ZERO: Self = Self(0);

    /// Whole dollars.
    #[must_use]
    pub const fn from_usd(usd: i64) -> Self {
        Self(usd.saturating_mul(NANOS_PER_USD))
    }

    /// The sum, held at the ends of the range.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, held at the ends of the range.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// For people: dollars and cents, rounded towards zero; amounts under a cent keep their digits.
    #[must_use]
    pub fn cents(self) -> String {
        let cents = self.0 / (NANOS_PER_USD / 100);
        if cents == 0 && self.0 != 0 {
            return self.to_string();
        }
        let sign = if cents < 0 { "-" } else { "" };
        format!("{sign}{}.{:02}", (cents / 100).abs(), (cents % 100).abs())
    }
}

/// The decimal text of `value` billionths, without trailing zeros: `19.93`, `20`, `-0.000000001`.
impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let abs = self.0.unsigned_abs();
        let (whole, part) = (abs / 1_000_000_000, abs % 1_000_000_000);
        if part == 0 {
            return write!(f, "{sign}{whole}");
        }
        let digits = format!("{part:09}");
        write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl fmt::Debug for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${self}")
    }
}

impl FromStr for NanoUsd {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let bad = || AmountError::NotDecimal(text.to_owned());
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, part) = rest.split_once('.').unwrap_or((rest, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) {
            return Err(bad());
        }
        if part.len() > 9 {
            return Err(AmountError::TooFine(text.to_owned()));
        }
        let large = || AmountError::TooLarge(text.to_owned());
        let whole: i64 = whole.parse().map_err(|_| large())?;
        let part: i64 = format!("{part:0<9}").parse().map_err(|_| bad())?;
        let nanos = whole.checked_mul(NANOS_PER_USD).and_then(|n| n.checked_add(part)).ok_or_else(large)?;
        Ok(Self(if negative { -nanos } else { nanos }))
    }
}

impl Serialize for NanoUsd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NanoUsd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_amount_say_the_same() {
        for (text, nanos) in
            [("0", 0), ("20", 20_000_000_000), ("0.4", 400_000_000), ("-1.000000001", -1_000_000_001)]
        {
            assert_eq!(text.parse(), Ok(NanoUsd(nanos)));
            assert_eq!(NanoUsd(nanos).to_string(), text);
        }
        for bad in ["", ".", "1.", ".5", "1e3", "+1", "1,5", " 1", "٣"] {
            assert!(matches!(bad.parse::<NanoUsd>(), Err(AmountError::NotDecimal(_))), "{bad}");
        }
        assert!(matches!("0.0000000001".parse::<NanoUsd>(), Err(AmountError::TooFine(_))));
        assert!(matches!("9300000000".parse::<NanoUsd>(), Err(AmountError::TooLarge(_))));
    }
}
