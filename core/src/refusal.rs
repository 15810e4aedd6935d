//! Refusals: one enum, rendered once per dialect.

/// Why a call is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {}
