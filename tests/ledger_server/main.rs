//! The ledger's server over real gRPC and a real SQLite file.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod failures;
mod fixture;
mod hostile;
mod streams;
