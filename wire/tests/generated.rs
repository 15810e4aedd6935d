//! The checked-in code is what `proto/ledger.proto` generates: no protoc, no build script.
//!
//! To accept a change: `PLIMSOLL_ACCEPT=1 cargo test -p plimsoll-wire --test generated`.

use std::fs;
use std::path::Path;

#[test]
fn the_checked_in_code_is_what_the_proto_file_generates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = root.join("../proto");
    let descriptors = protox::compile(["ledger.proto"], [&protos]).expect("proto/ledger.proto compiles");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        // Its `connect` would clash with the method of that name.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(descriptors)
        .expect("code is generated");
    let fresh =
        fs::read_to_string(out.path().join("plimsoll.ledger.v1.rs")).expect("one file for the package");
    let checked_in = root.join("src/gen/plimsoll.ledger.v1.rs");
    if std::env::var_os("PLIMSOLL_ACCEPT").is_some() {
        fs::write(&checked_in, &fresh).expect("the checked-in file can be written");
    }
    let held = fs::read_to_string(&checked_in).unwrap_or_default();
    assert!(
        held == fresh,
        "wire/src/gen/plimsoll.ledger.v1.rs is not what proto/ledger.proto generates; \
         accept with: PLIMSOLL_ACCEPT=1 cargo test -p plimsoll-wire --test generated"
    );
}
