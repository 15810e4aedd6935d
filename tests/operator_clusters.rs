//! Golden pairs: clusters as planned, and what Envoy is told of them.
//!
//! `tests/operator_clusters/NAME.yaml` holds what a backend asks for and `NAME.out` what it becomes:
//! the protobuf, without what has its default, extensions unpacked. ACCEPT=1 writes the `.out` files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::extensions::filters::http::credential_injector::v3::CredentialInjector;
use envoy_types::pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use envoy_types::pb::envoy::extensions::http::injected_credentials::generic::v3::Generic;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::google::protobuf::Any;
use plimsoll::gateway::cluster::cluster;
use plimsoll::source::manifest;
use plimsoll_core::ids::UnixMs;
use plimsoll_plan::{Settings, World, plan};
use prost::{Message, Name};
use std::fmt::Debug;
use std::fmt::Write;
use std::path::Path;

/// The debug form of `message` without what has its default.
fn show(message: &impl Debug) -> String {
    let mut text = String::new();
    for line in format!("{message:#?}").lines() {
        let value = line.trim_end_matches(',').rsplit(": ").next().unwrap_or_default();
        if !matches!(value, "None" | "[]" | "{}" | "\"\"" | "false" | "0") {
            writeln!(text, "{line}").unwrap();
        }
    }
    text
}

fn unpack<M: Message + Name + Default>(any: &Any) -> Option<M> {
    (any.type_url == M::type_url()).then(|| M::decode(any.value.as_slice()).unwrap())
}

/// Takes every `Any` out of `cluster` and shows it below, so that the bytes are readable.
fn expand(mut cluster: Cluster) -> String {
    use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType as Socket;
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
    let mut parts = vec![];
    if let Some(socket) = &mut cluster.transport_socket
        && let Some(Socket::TypedConfig(any)) = socket.config_type.take()
    {
        parts.push(show(&unpack::<UpstreamTlsContext>(&any).expect("a TLS context")));
    }
    let options = std::mem::take(&mut cluster.typed_extension_protocol_options);
    assert_eq!(options.len(), 1);
    for any in options.values() {
        let mut options = unpack::<HttpProtocolOptions>(any).expect("HTTP options");
        let filters = std::mem::take(&mut options.http_filters);
        parts.push(show(&options));
        for filter in filters {
            let Some(ConfigType::TypedConfig(any)) = filter.config_type else {
                panic!("a filter without config")
            };
            if let Some(mut injector) = unpack::<CredentialInjector>(&any) {
                let credential = injector.credential.as_mut().unwrap().typed_config.take().unwrap();
                parts.push(show(&injector));
                parts.push(show(&unpack::<Generic>(&credential).expect("a generic credential")));
            } else {
                parts.push(show(&unpack::<UpstreamCodec>(&any).expect("a codec")));
            }
        }
    }
    parts.insert(0, show(&cluster));
    parts.join("\n")
}

#[test]
fn backends_become_the_clusters_that_stand_in_the_golden_files() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operator_clusters");
    let mut inputs: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
    inputs.sort();
    assert!(inputs.len() >= 3, "{inputs:?}");
    for input in inputs {
        let mut planner = plimsoll_plan::Planner::new(World::new(Settings::default()));
        for entry in manifest::read(&std::fs::read_to_string(&input).unwrap()) {
            planner.put(entry.object.unwrap_or_else(|wrong| panic!("{}: {wrong:?}", input.display())));
        }
        planner.replan(UnixMs(0));
        let clusters = planner.plan().clusters.values();
        let text: String = clusters
            .map(|planned| expand(cluster(planned, "/etc/ssl/certs/ca-certificates.crt")) + "----\n")
            .collect();
        let golden = input.with_extension("out");
        if std::env::var_os("ACCEPT").is_some() {
            std::fs::write(&golden, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert!(text == expected, "{} differs; ACCEPT=1 accepts:\n{text}", golden.display());
    }
}

#[test]
fn a_world_without_backends_has_no_clusters() {
    assert!(plan(World::new(Settings::default()), UnixMs(0)).clusters.is_empty());
}
