//! Observe changes nothing: what provider and client see through Plimsoll, beside what they see through
//! the same Envoy without it. Only `stream_options` and `accept-encoding` may differ.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use plimsoll_sim::harness::envoy::{Envoy, Start};
use plimsoll_sim::harness::free_port;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use support::{Loop, budget};

/// Plain Envoy before the provider, with the same connection manager's settings as a gateway.
fn bare(provider: u16, listen: u16, admin: u16) -> String {
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - name: bare
    per_connection_buffer_limit_bytes: 67108864
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bare
          use_remote_address: true
          internal_address_config: {{cidr_ranges: [{{address_prefix: 255.255.255.255, prefix_len: 32}}]}}
          preserve_external_request_id: false
          skip_xff_append: true
          server_header_transformation: PASS_THROUGH
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: /}}
                route: {{cluster: provider, timeout: 0s, host_rewrite_literal: "127.0.0.1:{provider}"}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
  clusters:
  - name: provider
    load_assignment:
      cluster_name: provider
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {provider}}}}}}}
"#
    )
}

/// Everything that a client gets: status line, headers without those that no two answers share, body.
#[derive(Debug, PartialEq, Eq)]
struct Got {
    status: String,
    headers: Vec<String>,
    body: Vec<u8>,
}

/// Sent again where the connection was reset: a server that answers and closes before it has read the whole body
/// may take its answer with it, whoever stands between.
fn send(port: u16, head: &str, body: &[u8]) -> Got {
    let mut last = None;
    for _ in 0..3 {
        match exchange(port, head, body) {
            Ok(got) => return got,
            Err(error) => last = Some(error),
        }
    }
    panic!("{last:?}")
}

fn exchange(port: u16, head: &str, body: &[u8]) -> std::io::Result<Got> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = head.replace('\n', "\r\n");
    write!(stream, "{head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len()).unwrap();
    stream.write_all(body)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let split = all.windows(4).position(|at| at == b"\r\n\r\n").expect("an answer has a head");
    let head = String::from_utf8(all[..split].to_vec()).unwrap();
    let mut lines = head.split("\r\n").map(str::to_owned);
    let status = lines.next().unwrap();
    let mut headers: Vec<String> =
        lines.filter(|line| !["date:", "x-request-id:"].iter().any(|name| line.starts_with(name))).collect();
    headers.sort_unstable();
    let body = unchunked(&headers, &all[split + 4..]);
    Ok(Got { status, headers, body: without_ids(&body) })
}

/// The body's bytes whatever the chunks were: TCP cuts as it likes.
fn unchunked(headers: &[String], bytes: &[u8]) -> Vec<u8> {
    if !headers.iter().any(|line| line == "transfer-encoding: chunked") {
        return bytes.to_vec();
    }
    let (mut body, mut rest) = (Vec::new(), bytes);
    loop {
        let end = rest.windows(2).position(|at| at == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

/// The provider numbers its answers by request id and time.
fn without_ids(body: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(body);
    let mut out = String::new();
    let mut rest = text.as_ref();
    while let Some(at) = ["\"id\":\"", "\"created\":"]
        .iter()
        .filter_map(|name| rest.find(name).map(|at| at + name.len()))
        .min()
    {
        out.push_str(&rest[..at]);
        rest = rest[at..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    }
    out.push_str(rest);
    out.into_bytes()
}

#[test]
fn observing_changes_no_byte_for_client_or_provider() {
    let budgets = budget("tiny", "0.000001", "Total");
    let this = Loop::start(1, &budgets, "mode: Observe\ndefaultBackend: plimsoll-system/sim\n");
    let (listen, admin) = (free_port().unwrap(), free_port().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let bootstrap = bare(this.provider.address.port(), listen, admin);
    let start = Start { name: "bare", bootstrap: &bootstrap, dir: directory.path(), admin, concurrency: 1 };
    let mut envoy = Envoy::spawn(&start).unwrap();
    envoy.wait_ready(Duration::from_secs(20)).unwrap();

    let big = format!(
        r#"{{"model":"sim-large","messages":[{{"role":"user","content":"{}"}}]}}"#,
        "x".repeat(900_000)
    );
    let key = "authorization: Bearer the-providers-key";
    let chat = "POST /v1/chat/completions HTTP/1.1\nhost: api\ncontent-type: application/json";
    let bodies: Vec<(&str, String, Vec<u8>)> = [
        ("JSON", r#"{ "model" : "sim-large", "messages":[{"role":"user","content":"hé\u00e9llo"}] , "temperature":0.5}"#),
        ("stream with usage", r#"{"model":"sim-large","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"a"}]}"#),
        ("stream without usage", r#"{"model":"sim-large","stream":true,"messages":[{"role":"user","content":"a"}]}"#),
        ("stream, usage declined", r#"{"model":"sim-large","stream":true,"stream_options":{"include_usage":false},"messages":[{"role":"user","content":"a"}]}"#),
        ("unknown model", r#"{"model":"nobody-has-it","messages":[{"role":"user","content":"a"}]}"#),
        ("no model", r#"{"messages":[]}"#),
        ("not JSON", "{{{"),
        ("twice the key", r#"{"model":"sim-large","model":"other","messages":[{"role":"user","content":"a"}]}"#),
        ("huge bound", r#"{"model":"sim-large","max_tokens":9000000,"messages":[{"role":"user","content":"a"}]}"#),
        ("large", big.as_str()),
    ]
    .into_iter()
    .map(|(what, body)| (what, format!("{chat}\n{key}\nx-plimsoll-feature: tiny\nx-sim-keep: 1\naccept-encoding: gzip\nx-odd: a,  b"), body.as_bytes().to_vec()))
    .chain([
        ("wrong key", format!("{chat}\nauthorization: Bearer wrong\nx-sim-keep: 1"), br#"{"model":"sim-large","messages":[]}"#.to_vec()),
        ("failure", format!("{chat}\n{key}\nx-sim-keep: 1\nx-sim-status: 503"), br#"{"model":"sim-large","messages":[]}"#.to_vec()),
        ("half UTF-8", format!("{chat}\n{key}\nx-sim-keep: 1"), b"{\"model\":\"sim-large\",\"messages\":[{\"role\":\"user\",\"content\":\"\xc3\"}]}".to_vec()),
        ("other path", format!("GET /v1/models HTTP/1.1\nhost: api\n{key}\nx-sim-keep: 1"), Vec::new()),
    ])
    .collect();
    for (what, head, body) in &bodies {
        let plain = send(listen, head, body);
        let seen_plain = this.provider.provider.last_request().unwrap();
        let observed = send(this.stack.gateways()[0].port, head, body);
        let seen = this.provider.provider.last_request().unwrap();
        assert_eq!(observed, plain, "{what}: the client sees a difference");
        assert_eq!(seen.line, seen_plain.line, "{what}");
        let same = |headers: &[(String, String)]| {
            let varying = ["accept-encoding", "x-request-id", "content-length"];
            let kept = headers.iter().filter(|(name, _)| !varying.contains(&name.as_str()));
            let mut kept: Vec<_> = kept.cloned().collect();
            kept.sort_unstable();
            kept
        };
        assert_eq!(same(&seen.headers), same(&seen_plain.headers), "{what}: the provider sees other headers");
        if what.starts_with("stream") {
            let strip = |body: &[u8]| {
                let mut body: serde_json::Value = serde_json::from_slice(body).unwrap();
                body.as_object_mut().unwrap().remove("stream_options");
                body
            };
            assert_eq!(strip(&seen.body), strip(&seen_plain.body), "{what}");
        } else {
            assert_eq!(seen.body, seen_plain.body, "{what}: the provider sees another body");
        }
    }
    // It was counted all the same, against a budget that is long exceeded.
    let books = this.close();
    let observed = books.rows().filter(|row| !row.observed.is_empty()).count();
    assert!(observed >= 6, "{observed} calls were counted for the budget that observes");
    assert!(books.rows().all(|row| row.accounts.is_empty()));
}

#[test]
fn an_observing_installation_serves_on_without_an_operator() {
    let mut this = Loop::start(
        1,
        &budget("tiny", "0.000001", "Total"),
        "mode: Observe\ndefaultBackend: plimsoll-system/sim\n",
    );
    this.stack.kill_operator();
    let head = "POST /v1/chat/completions HTTP/1.1\nhost: api\nauthorization: Bearer the-providers-key\nx-plimsoll-feature: tiny";
    for _ in 0..50 {
        let got = send(
            this.stack.gateways()[0].port,
            head,
            br#"{"model":"sim-large","messages":[{"role":"user","content":"a"}]}"#,
        );
        assert_eq!(got.status, "HTTP/1.1 200 OK");
    }
    this.stack.start_operator().unwrap();
    let books = this.close();
    assert_eq!(books.rows().count(), 50);
}
