//! The ledger's messages on the wire: protobuf envelopes round the core's types.
//!
//! [`proto`] is generated from `proto/ledger.proto` and checked in (see `tests/generated.rs`);
//! [`convert`] goes both ways between it and [`plimsoll_core::protocol`], [`record`] writes a gateway's log. What the messages mean is
//! the core's affair: nothing here decides.

pub mod convert;
pub mod record;

/// Generated from `proto/ledger.proto`: messages, client and (feature `server`) server.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    // `include!`, so that rustfmt leaves what the generator wrote.
    include!("gen/plimsoll.ledger.v1.rs");
}

pub use convert::Malformed;
