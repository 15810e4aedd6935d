//! Amounts as people write them: an integer, or a decimal string. Never a float.
//!
//! The text is kept as it came; `plan` makes exact numbers of it, because only there the unit is known.
//! Its schemas, one for each use, stand in `schema`.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// An integer or a decimal string, `500` or `"12.50"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Decimal {
    /// Written as a number.
    Integer(i64),
    /// Written as a string.
    Text(String),
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Decimal;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer, or a decimal number in quotes")
            }
            fn visit_i64<E>(self, number: i64) -> Result<Decimal, E> {
                Ok(Decimal::Integer(number))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Decimal, E> {
                let number = i64::try_from(number);
                number.map(Decimal::Integer).map_err(|_| E::custom("the integer is too large"))
            }
            fn visit_str<E>(self, text: &str) -> Result<Decimal, E> {
                Ok(Decimal::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Whether `text` is written as amounts are: digits, and perhaps a point and more digits.
pub(crate) fn is_decimal(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    digits(whole) && digits(part)
}
