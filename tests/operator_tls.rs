//! The operator's TLS: certificates are rotated while it runs, and a gateway is whom its certificate names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use plimsoll::gateway::Discovery;
use plimsoll::ledger::{LedgerHandle, ServerSettings, SqliteStore, TlsFiles, Transport, start_beside};
use plimsoll_core::ids::Epoch;
use plimsoll_core::protocol::{FromGateway, FromLedger, Hello, LogState};
use plimsoll_sim::harness::certs::{Authority, Pair};
use plimsoll_wire::proto::ledger_client::LedgerClient;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

const SOON: Duration = Duration::from_secs(20);
const HOSTS: [&str; 2] = ["localhost", "127.0.0.1"];

/// An operator's gRPC server whose files are in `directory`: ca.pem, own.pem, own.key.
async fn serve(directory: &Path) -> (LedgerHandle, Arc<Discovery>) {
    let file = |name: &str| directory.join(name);
    let settings = ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        transport: Transport::MutualTls(TlsFiles {
            ca: file("ca.pem"),
            cert: file("own.pem"),
            key: file("own.key"),
        }),
        ride_through_ms: 60_000,
        lost_after_ms: 600_000,
    };
    let discovery = Arc::new(Discovery::default());
    let services = tonic::service::Routes::new(discovery.service(settings.transport.clone()));
    let store = SqliteStore::open(&file("ledger.db")).await.unwrap();
    let ledger = start_beside(settings, store, services).await.unwrap();
    ledger.publish(BTreeMap::new(), vec![], vec![]).await;
    (ledger, discovery)
}

fn put(pair: &Pair, directory: &Path) {
    std::fs::copy(&pair.key, directory.join("own.key")).unwrap();
    std::fs::copy(&pair.cert, directory.join("own.pem")).unwrap();
}

/// The certificate that the server shows to one who comes with `own` and believes `authority`; an error
/// where the server will not have it.
async fn shown(server: SocketAddr, authority: &Path, own: &Pair) -> Result<CertificateDer<'static>, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&own.cert).unwrap()],
            PrivateKeyDer::from_pem_file(&own.key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols.push(b"h2".to_vec());
    let connection = TcpStream::connect(server).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connect = TlsConnector::from(Arc::new(config)).connect(name, connection);
    let mut stream = timeout(SOON, connect).await.unwrap().map_err(|error| error.to_string())?;
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    // A server that doesn't believe the client says so after the client's handshake.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let read = timeout(SOON, stream.read(&mut [0; 9])).await.unwrap();
    match read.map_err(|error| error.to_string())? {
        0 => Err("the server ends the connection".to_owned()),
        _ => Ok(certificate),
    }
}

#[tokio::test]
async fn a_new_connection_gets_the_files_of_now_and_a_bad_file_leaves_the_last_good_ones() {
    let directory = tempfile::tempdir().unwrap();
    let first = Authority::new(directory.path()).unwrap();
    let second = Authority::new(&directory.path().join("second")).unwrap();
    let [old, new, gateway] = ["old", "new", "gateway"].map(|name| first.issue(name, &HOSTS).unwrap());
    let stranger = second.issue("gateway", &HOSTS).unwrap();
    let own = |pair: &Pair| CertificateDer::from_pem_file(&pair.cert).unwrap();
    // Each authority's file is overwritten below.
    let believed = directory.path().join("first.pem");
    std::fs::copy(&first.ca, &believed).unwrap();
    put(&old, directory.path());
    let (ledger, _) = serve(directory.path()).await;
    let server = ledger.address();
    assert_eq!(shown(server, &believed, &gateway).await, Ok(own(&old)));

    // A certificate whose key is not there yet; no PEM; no file.
    std::fs::copy(&new.cert, directory.path().join("own.pem")).unwrap();
    assert_eq!(shown(server, &believed, &gateway).await, Ok(own(&old)));
    std::fs::write(directory.path().join("own.key"), "no key").unwrap();
    assert_eq!(shown(server, &believed, &gateway).await, Ok(own(&old)));
    std::fs::remove_file(directory.path().join("own.key")).unwrap();
    assert_eq!(shown(server, &believed, &gateway).await, Ok(own(&old)));
    put(&new, directory.path());
    assert_eq!(shown(server, &believed, &gateway).await, Ok(own(&new)));

    // Another authority for gateways.
    assert!(shown(server, &believed, &stranger).await.is_err());
    std::fs::copy(&second.ca, directory.path().join("ca.pem")).unwrap();
    assert_eq!(shown(server, &believed, &stranger).await, Ok(own(&new)));
    assert!(shown(server, &believed, &gateway).await.is_err());
    ledger.shutdown().await;
}

/// Connections that say nothing.
async fn silent(server: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for _ in 0..count {
        silent.push(TcpStream::connect(server).await.unwrap());
    }
    silent
}

#[tokio::test]
async fn who_connects_and_says_nothing_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path()).unwrap();
    let pair = authority.issue("operator", &HOSTS).unwrap();
    put(&pair, directory.path());
    let (ledger, _) = serve(directory.path()).await;
    let _silent = silent(ledger.address(), 20).await;
    assert!(shown(ledger.address(), &authority.ca, &pair).await.is_ok());
    ledger.shutdown().await;
}

#[tokio::test]
async fn more_silent_connections_than_handshakes_at_a_time_keep_no_gateway_out() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path()).unwrap();
    let pair = authority.issue("operator", &HOSTS).unwrap();
    put(&pair, directory.path());
    let (ledger, _) = serve(directory.path()).await;
    let mut silent = silent(ledger.address(), 300).await;
    // Sooner than the silent ones are given up.
    let shown = shown(ledger.address(), &authority.ca, &pair);
    assert!(
        timeout(Duration::from_secs(2), shown).await.expect("it has to wait for the silent ones").is_ok()
    );
    // The oldest was dropped for it: its connection ends.
    assert!(!matches!(timeout(SOON, silent[0].read(&mut [0])).await.unwrap(), Ok(1..)));
    ledger.shutdown().await;
}

async fn channel(server: SocketAddr, authority: &Path, own: &Pair) -> Channel {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(authority)))
        .identity(Identity::from_pem(read(&own.cert), read(&own.key)))
        .domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{server}")).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await.unwrap()
}

/// What the ledger answers to the Hello of `id`.
async fn greeted(channel: &Channel, id: &str, epoch: u128) -> Result<(), Status> {
    let hello = Hello {
        gateway: id.to_owned(),
        epoch: Epoch(epoch),
        log: LogState::New,
        sequence: 0,
        totals: vec![],
        policy: vec![],
    };
    let said = tokio_stream::iter([FromGateway::Hello(hello).into()]).chain(tokio_stream::pending());
    let mut heard = LedgerClient::new(channel.clone()).connect(said).await?.into_inner();
    let answer = timeout(SOON, heard.message()).await.expect("the ledger says nothing")?;
    assert!(matches!(answer.unwrap().try_into().unwrap(), FromLedger::Welcome(_)));
    Ok(())
}

/// What the discovery service says to the node `id`; `Ok`: it has let it in.
async fn discovered(channel: &Channel, discovery: &Discovery, id: &str) -> Result<(), Status> {
    let request = DeltaDiscoveryRequest {
        node: Some(Node { id: id.to_owned(), ..Node::default() }),
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut changes = discovery.gateways().changes();
    let said = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
    let mut heard = client.delta_aggregated_resources(said).await?.into_inner();
    let let_in = changes.wait_for(|_| discovery.gateways().all().contains_key(id));
    tokio::select! {
        answer = heard.message() => answer.map(drop),
        changed = timeout(SOON, let_in) => { changed.unwrap().unwrap(); Ok(()) }
    }
}

#[tokio::test]
async fn a_gateway_is_whom_its_certificate_names() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path()).unwrap();
    put(&authority.issue("operator", &HOSTS).unwrap(), directory.path());
    let (ledger, discovery) = serve(directory.path()).await;
    let shared = authority.issue("shared", &HOSTS).unwrap();
    let bound = authority.issue("bound", &["gw-1.gateway.plimsoll"]).unwrap();
    let any = authority.issue("any", &["*.gateway.plimsoll"]).unwrap();
    let tilde = authority.issue("tilde", &["sidecar~gw-1.gateway.plimsoll", "localhost"]).unwrap();
    let long = authority.issue("long", &[&format!("{}.gateway.plimsoll", "x".repeat(64))]).unwrap();
    let cases = [
        (&shared, "gw-1", true),
        (&shared, "gw-2", true),
        (&bound, "gw-1", true),
        // An id that nobody else has here: it is in only if this one lets it in.
        (&bound, "gw-9", false),
        (&any, "gw-3", true),
        // Made for one gateway each, by a name that is none.
        (&tilde, "gw-9", false),
        (&long, "gw-9", false),
    ];
    for (epoch, (pair, id, permitted)) in (1..).zip(cases) {
        let channel = channel(ledger.address(), &authority.ca, pair).await;
        for answer in [greeted(&channel, id, epoch).await, discovered(&channel, &discovery, id).await] {
            match answer {
                Ok(()) => assert!(permitted, "{id} with {}", pair.cert.display()),
                Err(status) => {
                    assert!(!permitted, "{id} with {}: {status}", pair.cert.display());
                    assert_eq!(status.code(), Code::PermissionDenied);
                    let says = |words| status.message().contains(words);
                    match pair.cert == bound.cert {
                        true => {
                            assert!(says("gw-9 shows a certificate for gw-1.gateway.plimsoll"), "{status}")
                        }
                        false => assert!(says("none of its names is a valid DNS name"), "{status}"),
                    }
                }
            }
        }
    }
    discovery.stop();
    ledger.shutdown().await;
}
