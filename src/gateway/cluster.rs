//! A backend's clusters in Envoy's words. Pure; golden-tested.
//!
//! Each backend has two: one that puts the provider's key in place of whatever credential the caller
//! sent, and one that passes the caller's own (Observe). Envoy never retries: one reservation
//! covers one attempt, so a retry that the ledger doesn't know of would be unpaid.

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType as SocketConfig;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, Http1ProtocolOptions,
    HttpProtocolOptions as CommonHttpProtocolOptions, SocketAddress, TransportSocket, TypedExtensionConfig,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::extensions::filters::http::credential_injector::v3::CredentialInjector;
use envoy_types::pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::http::injected_credentials::generic::v3::Generic;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    UpstreamTlsContext,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions,
};
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::{Duration, UInt32Value};
use envoy_types::util::pack_any;
use plimsoll_plan::EnvoyCluster;
use std::collections::HashMap;
use std::net::IpAddr;

use super::secret;

/// Where gateways find the roots that providers' certificates are checked against.
pub const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// More than any gateway can have in flight: Envoy's default of 1024 would refuse calls that the
/// budgets allow, with a 503 that nobody could explain.
const UNLIMITED: u32 = 1_000_000;

/// `upstream` as Envoy wants it. `ca_file` is a path on the gateway.
#[must_use]
pub fn cluster(upstream: &EnvoyCluster, ca_file: &str) -> Cluster {
    let (discovery, family) = discovery(upstream);
    Cluster {
        name: upstream.name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        dns_lookup_family: family.into(),
        connect_timeout: Some(Duration { seconds: 5, nanos: 0 }),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: Some(UInt32Value { value: UNLIMITED }),
                max_pending_requests: Some(UInt32Value { value: UNLIMITED }),
                max_requests: Some(UInt32Value { value: UNLIMITED }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        load_assignment: Some(endpoint(upstream)),
        transport_socket: upstream.tls.then(|| tls(&upstream.host, ca_file)),
        typed_extension_protocol_options: HashMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pack_any(protocol(upstream)),
        )]),
        ..Default::default()
    }
}

/// Providers stand behind names with many, changing addresses, of which one connection's worth is
/// enough (`LOGICAL_DNS`); behind a plain name stands a service whose every address is a server.
fn discovery(upstream: &EnvoyCluster) -> (DiscoveryType, DnsLookupFamily) {
    if upstream.host.parse::<IpAddr>().is_ok() {
        (DiscoveryType::Static, DnsLookupFamily::Auto)
    } else if upstream.tls {
        (DiscoveryType::LogicalDns, DnsLookupFamily::All)
    } else {
        (DiscoveryType::StrictDns, DnsLookupFamily::V4Preferred)
    }
}

fn endpoint(upstream: &EnvoyCluster) -> ClusterLoadAssignment {
    let address = Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: upstream.host.clone(),
            port_specifier: Some(PortSpecifier::PortValue(upstream.port.into())),
            ..Default::default()
        })),
    };
    let endpoint = Endpoint { address: Some(address), hostname: upstream.host.clone(), ..Default::default() };
    ClusterLoadAssignment {
        cluster_name: upstream.name.clone(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn tls(host: &str, ca_file: &str) -> TransportSocket {
    let is_address = host.parse::<IpAddr>().is_ok();
    let name = SubjectAltNameMatcher {
        san_type: if is_address { SanType::IpAddress } else { SanType::Dns }.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(host.to_owned())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let context = UpstreamTlsContext {
        // RFC 6066 has no server name for an address.
        sni: if is_address { String::new() } else { host.to_owned() },
        common_tls_context: Some(CommonTlsContext {
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    trusted_ca: Some(DataSource {
                        specifier: Some(Specifier::Filename(ca_file.to_owned())),
                        ..Default::default()
                    }),
                    match_typed_subject_alt_names: vec![name],
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(SocketConfig::TypedConfig(pack_any(context))),
    }
}

fn protocol(upstream: &EnvoyCluster) -> HttpProtocolOptions {
    // A request sent into a connection that the server is just closing has an unknown outcome and
    // settles at its reserve, so ours must close first. Model servers on uvicorn wait 5 s,
    // providers' front ends a minute and more.
    let idle = Duration { seconds: if upstream.tls { 50 } else { 4 }, nanos: 0 };
    let http = if upstream.tls {
        // ALPN decides between HTTP/2 and HTTP/1.1.
        UpstreamProtocolOptions::AutoConfig(AutoHttpConfig::default())
    } else {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())),
        })
    };
    HttpProtocolOptions {
        common_http_protocol_options: Some(CommonHttpProtocolOptions {
            idle_timeout: Some(idle),
            ..Default::default()
        }),
        upstream_protocol_options: Some(http),
        http_filters: upstream
            .inject_key
            .as_ref()
            .map_or_else(Vec::new, |key| vec![injector(&secret::name(key)), codec()]),
        ..Default::default()
    }
}

/// Puts `Bearer <key>` in place of the caller's Authorization. Without the key it answers 401: the
/// caller's own credential must not reach the provider instead.
fn injector(key: &str) -> HttpFilter {
    let credential = Generic {
        credential: Some(SdsSecretConfig {
            name: key.to_owned(),
            sds_config: Some(ConfigSource {
                resource_api_version: ApiVersion::V3.into(),
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
                ..Default::default()
            }),
        }),
        header: "authorization".to_owned(),
        header_value_prefix: "Bearer ".to_owned(),
    };
    let injector = CredentialInjector {
        overwrite: true,
        allow_request_without_credential: false,
        credential: Some(TypedExtensionConfig {
            name: "envoy.http.injected_credentials.generic".to_owned(),
            typed_config: Some(pack_any(credential)),
        }),
    };
    HttpFilter {
        name: "envoy.filters.http.credential_injector".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack_any(injector))),
        ..Default::default()
    }
}

fn codec() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.upstream_codec".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack_any(UpstreamCodec {}))),
        ..Default::default()
    }
}
