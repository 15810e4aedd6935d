//! The client thread and the test's ledger without an Envoy between them: what depends on instants that no call
//! can choose.

use super::world::ledger::Ledger;
use super::*;
use plimsoll_core::account::LimitKey;
use plimsoll_core::gateway::{Admission, Resumed};
use plimsoll_core::protocol::AskId;
use plimsoll_filter::process::{Configured, configure, release};
use plimsoll_sim::harness::certs::{Authority, Pair};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// A process has one client.
static ONE: Mutex<()> = Mutex::new(());

struct Client {
    shared: Option<Configured>,
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

fn settings(ledger: &Ledger, dir: &Path) -> serde_json::Value {
    serde_json::json!({
        "gatewayId": "gateway-1",
        "operators": [format!("127.0.0.1:{}", ledger.port)],
        "plainText": true,
        "logDirectory": dir.join("log"),
    })
}

impl Client {
    fn start(ledger: &Ledger) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(ledger, dir.path());
        Self::with(&settings, dir)
    }

    fn with(settings: &serde_json::Value, dir: tempfile::TempDir) -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = configure(settings.to_string().as_bytes()).unwrap();
        let client = Self { shared: Some(shared), dir, _one: one };
        client.wait_ready();
        client
    }

    fn shared(&self) -> &Configured {
        self.shared.as_ref().unwrap()
    }

    fn wait_ready(&self) {
        wait_until("readiness", SOON, || match self.shared().not_ready() {
            None => Ok(()),
            Some(why) => Err(why.to_owned()),
        })
        .unwrap();
    }

    fn wait_connected(&self, connected: i64) {
        wait_until("the connection", SOON, || {
            let now = self.shared().metrics.connected.get();
            if now == connected { Ok(()) } else { Err(now.to_string()) }
        })
        .unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.take().into_iter().for_each(release);
    }
}

fn wait_heard(ledger: &Ledger, kind: &str, count: u64) {
    wait_until(kind, SOON, || {
        let heard = ledger.heard(kind);
        if heard >= count { Ok(()) } else { Err(format!("{heard} of {count}")) }
    })
    .unwrap();
}

fn limits() -> Vec<LimitKey> {
    let (key, body) = budget(1);
    let PolicyKey::Budget(name) = key else { panic!("{key:?}") };
    body.limits.iter().map(|limit| limit.key(&name)).collect()
}

#[test]
fn three_thousand_paused_requests_are_all_answered_after_a_reconnect() {
    let ledger = Ledger::start(policy(Enforcement::Enforce, &[budget(1_000_000_000_000)]));
    let client = Client::start(&ledger);
    let gateway = &client.shared().gateway;
    ledger.mute(true);
    let (limits, now) = (limits(), client.shared().clock.now());
    let mut waiting: Vec<AskId> = (0..3_000)
        .map(|_| {
            let reserve = charge(100);
            assert!(matches!(gateway.admit(&limits, &reserve, now), Admission::Short));
            gateway.pause(&limits, &reserve, now, now)
        })
        .collect();
    client.shared().wake.notify_one();
    wait_heard(&ledger, "ask", 3_000);
    ledger.mute(false);
    ledger.end_streams();
    let mut admitted = Vec::new();
    wait_until("all answers", SOON, || {
        waiting.retain(|id| match gateway.resume(*id) {
            None => true,
            Some(Resumed::Admitted(reservation)) => {
                admitted.push(reservation);
                false
            }
            Some(other) => panic!("{id:?}: {other:?}, after {} were admitted", admitted.len()),
        });
        if waiting.is_empty() { Ok(()) } else { Err(format!("{} wait", waiting.len())) }
    })
    .unwrap();
    assert_eq!((admitted.len(), ledger.heard("hello")), (3_000, 2), "no stream was given up");
    admitted.into_iter().for_each(|reservation| {
        reservation.release();
    });
}

#[test]
fn a_welcome_that_comes_when_its_epoch_ends_brings_nothing_back() {
    let ledger = Ledger::start(policy(Enforcement::Enforce, &[budget(1_000_000)]));
    let client = Client::start(&ledger);
    let shared = client.shared();
    let old = shared.gateway.epoch();
    let in_flight = shared.count().unwrap();
    ledger.hold_welcomes();
    ledger.end_streams();
    wait_heard(&ledger, "hello", 2);
    client.wait_connected(0);
    // As where the log turns out to prove nothing; the call in flight holds the epoch.
    shared.closing.store(true, SeqCst);
    ledger.deliver_welcomes();
    // The stream is left, not used.
    wait_until("the stream's end", SOON, || match ledger.streams() {
        0 => Ok(()),
        open => Err(format!("{open} open")),
    })
    .unwrap();
    assert_eq!((shared.metrics.connected.get(), shared.gateway.epoch()), (0, old));
    assert!(shared.count().is_none(), "nothing is admitted to an epoch that ends");
    drop(in_flight);
    client.wait_ready();
    client.wait_connected(1);
    assert_ne!(shared.gateway.epoch(), old);
    assert_eq!(ledger.epochs(), 2);
}

#[test]
fn a_second_configuration_waits_for_nobody_while_one_is_in_force_and_for_the_log_when_the_last_one_goes() {
    let ledger = Ledger::start(policy(Enforcement::Enforce, &[budget(1_000_000)]));
    let mut client = Client::start(&ledger);
    let settings = settings(&ledger, client.dir.path()).to_string();
    // The farewell takes its whole time.
    ledger.lose_close(true);
    let overlapping = configure(settings.as_bytes()).unwrap();
    let begun = Instant::now();
    release(client.shared.take().unwrap());
    client.shared = Some(configure(settings.as_bytes()).unwrap());
    release(overlapping);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(client.shared().not_ready(), None);
    assert_eq!(ledger.heard("hello"), 1);

    let last = client.shared.take().unwrap();
    let epoch = last.gateway.epoch();
    let begun = Instant::now();
    let ending = std::thread::spawn(move || release(last));
    wait_heard(&ledger, "close", 1);
    // Envoy would not try again if this one were refused.
    client.shared = Some(configure(settings.as_bytes()).unwrap());
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    ending.join().unwrap();
    ledger.lose_close(false);
    client.wait_ready();
    assert_eq!(client.shared().gateway.epoch(), epoch, "Close did not come, so its epoch goes on");
}

/// The files of one authority, and what the operator serves with.
fn identity(authority: &Authority, pair: &Pair) -> ServerTlsConfig {
    let read = |path: &Path| std::fs::read(path).unwrap();
    ServerTlsConfig::new()
        .identity(Identity::from_pem(read(&pair.cert), read(&pair.key)))
        .client_ca_root(Certificate::from_pem(read(&authority.ca)))
}

#[test]
fn certificates_that_are_rotated_are_used_for_the_next_connection_and_bad_ones_never() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| {
        let authority = Authority::new(&dir.path().join(name)).unwrap();
        let operator = authority.issue("operator", &["127.0.0.1"]).unwrap();
        let gateway = authority.issue("gateway", &["gateway-1"]).unwrap();
        (identity(&authority, &operator), authority.ca.clone(), gateway)
    });
    let files = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.path().join(name));
    let put = |from: &(ServerTlsConfig, std::path::PathBuf, Pair)| {
        for (from, to) in [&from.1, &from.2.cert, &from.2.key].into_iter().zip(&files) {
            std::fs::copy(from, to).unwrap();
        }
    };
    put(&old);
    let mut ledger = Ledger::start(policy(Enforcement::Enforce, &[budget(1_000_000)]));
    ledger.stop();
    ledger.tls = Some(old.0.clone());
    ledger.serve();
    let mut settings = settings(&ledger, dir.path());
    settings["plainText"] = false.into();
    settings["tls"] = serde_json::json!({"ca": files[0], "cert": files[1], "key": files[2]});
    let client = Client::with(&settings, dir);

    // One half of a rotation, then none at all, then an empty one: each connection goes on with what was good.
    let mut connections = 1;
    let half = || std::fs::copy(&new.2.cert, &files[1]).map(|_| ());
    let gone = || std::fs::remove_file(&files[1]);
    let empty = || std::fs::write(&files[0], "");
    for bad in [&half as &dyn Fn() -> std::io::Result<()>, &gone, &empty] {
        bad().unwrap();
        ledger.end_streams();
        connections += 1;
        wait_heard(&ledger, "hello", connections);
        client.wait_connected(1);
    }
    // The operator rotates first: the gateway's old files are of no use to it.
    ledger.stop();
    ledger.tls = Some(new.0.clone());
    ledger.serve();
    client.wait_connected(0);
    put(&new);
    wait_heard(&ledger, "hello", connections + 1);
    client.wait_connected(1);
}
