//! The operator as a process, on files: what it serves, how it takes changes and bad input, how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use plimsoll_core::ids::{Epoch, ObjectName};
use plimsoll_core::policy::{PolicyKey, PolicyVersion};
use plimsoll_core::protocol::{FromGateway, FromLedger, Hello, LogState, PolicyDelta};
use plimsoll_sim::harness::{self, Process, http};
use plimsoll_wire::proto::ledger_client::LedgerClient;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio_stream::StreamExt;

const PATIENCE: Duration = Duration::from_secs(30);

const OBJECTS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: openai, namespace: plimsoll-system}
stringData: {api-key: sk-very-secret}
---
apiVersion: plimsoll.dev/v1alpha1
kind: ModelBackend
metadata: {name: openai, namespace: plimsoll-system}
spec:
  provider: {api: OpenAI, baseURL: "https://api.openai.com/v1", apiKeySecretRef: {name: openai, key: api-key}}
  models: [{name: m, contextTokens: 1000, maxOutputTokens: 100, price: {inputPerMillion: 1, outputPerMillion: 2}}]
"#;

fn budget(name: &str, amount: &str) -> String {
    format!(
        "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\nmetadata: {{name: {name}, namespace: finance}}\n\
         spec: {{limits: [{{name: month, amount: {amount}}}]}}\n---\n"
    )
}

struct Operator {
    process: Process,
    http: u16,
    grpc: u16,
    directory: tempfile::TempDir,
}

impl Operator {
    fn start(manifests: &[(&str, &str)], settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let policy = directory.path().join("policy");
        std::fs::create_dir(&policy).unwrap();
        for (name, text) in manifests {
            std::fs::write(policy.join(name), text).unwrap();
        }
        let [http, grpc] = std::array::from_fn(|_| harness::free_port().unwrap());
        let config = format!(
            "ledger: {{sqlite: {{path: {}/ledger.db}}}}\n\
             listen: {{grpc: \"127.0.0.1:{grpc}\", http: \"127.0.0.1:{http}\"}}\n{settings}",
            directory.path().display()
        );
        std::fs::write(directory.path().join("plimsoll.yaml"), config).unwrap();
        let process = spawn(directory.path());
        let mut operator = Self { process, http, grpc, directory };
        operator.ready();
        operator
    }

    fn ready(&mut self) {
        let http = self.http;
        let ready = || match http::get(("127.0.0.1", http), "/readyz") {
            Ok(page) if page.status == 200 => Ok(()),
            Ok(page) => Err(page.body),
            Err(error) => Err(error.to_string()),
        };
        self.process.wait_ready("the operator's readiness", PATIENCE, ready).unwrap();
    }

    fn get(&self, path: &str) -> String {
        let page = http::get(("127.0.0.1", self.http), path).unwrap();
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        page.body
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status")).unwrap()
    }

    fn policy(&self, file: &str) -> PathBuf {
        self.directory.path().join("policy").join(file)
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let status = self.status();
            if holds(&status) {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}; status: {status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.process.log()).unwrap()
    }
}

fn spawn(directory: &Path) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.current_dir(directory).args(["operator", "--config", "plimsoll.yaml", "--manifests", "policy"]);
    Process::spawn("operator", command, &directory.join("operator.log")).unwrap()
}

fn amount(status: &Value, budget: &str) -> Option<String> {
    let budget = &status["budgets"][format!("finance/{budget}")];
    budget["limits"][0]["amount"].as_str().map(str::to_owned)
}

#[test]
fn changes_are_taken_while_it_runs_and_bad_ones_leave_the_last_good_state() {
    let both = budget("a", "500") + &budget("b", "7");
    let operator =
        Operator::start(&[("budgets.yaml", &both), ("objects.yaml", OBJECTS)], "plainText: true\n");
    let status = operator.until("both budgets", |status| amount(status, "b").is_some());
    assert_eq!(amount(&status, "a").unwrap(), "500.00");
    assert!(operator.get("/status?format=table").contains("finance/a"));

    // A changed one.
    std::fs::write(operator.policy("budgets.yaml"), budget("a", "600") + &budget("b", "7")).unwrap();
    operator.until("the new amount", |status| amount(status, "a").as_deref() == Some("600.00"));

    // A bad one beside a good change: reported by line and object; its last good state stays.
    std::fs::write(operator.policy("budgets.yaml"), budget("a", "-1") + &budget("b", "8")).unwrap();
    let status = operator.until("the fault", |status| status["faults"][0].is_object());
    let fault = &status["faults"][0];
    assert_eq!(fault["object"], "AIBudget finance/a");
    assert_eq!(fault["place"], "policy/budgets.yaml:4");
    assert!(fault["message"].as_str().unwrap().contains("spec.limits[0].amount"), "{fault}");
    let status = operator.until("the good one", |status| amount(status, "b").as_deref() == Some("8.00"));
    assert_eq!(amount(&status, "a").unwrap(), "600.00");

    // No YAML at all, and then a file that is being written.
    std::fs::write(operator.policy("budgets.yaml"), "spec: {limits: [").unwrap();
    operator.until("no YAML", |status| {
        status["faults"][0]["message"].as_str().is_some_and(|message| message.contains("not YAML"))
    });
    let whole = budget("a", "900") + &budget("b", "9");
    let mut file = std::fs::File::create(operator.policy("budgets.yaml")).unwrap();
    for part in whole.as_bytes().chunks(40) {
        std::io::Write::write_all(&mut file, part).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert!(amount(&operator.status(), "b").is_some(), "a half-written file deletes nothing");
    }
    drop(file);
    operator.until("the whole file", |status| amount(status, "b").as_deref() == Some("9.00"));
    operator.until("no faults", |status| status["faults"].as_array().unwrap().is_empty());

    // Renamed into place, as editors and ConfigMaps do; then deleted.
    std::fs::write(operator.policy(".new"), budget("a", "1000") + &budget("b", "9")).unwrap();
    std::fs::rename(operator.policy(".new"), operator.policy("budgets.yaml")).unwrap();
    operator.until("the renamed file", |status| amount(status, "a").as_deref() == Some("1000.00"));
    std::fs::remove_file(operator.policy("budgets.yaml")).unwrap();
    operator.until("the deletion", |status| status["budgets"].as_object().unwrap().is_empty());
    assert!(
        !operator.log().contains("sk-very-secret") && !operator.get("/status").contains("sk-very-secret")
    );
}

#[test]
fn a_mounted_config_map_is_followed_through_its_links() {
    use std::os::unix::fs::symlink;
    let operator = Operator::start(&[], "plainText: true\n");
    let mount = operator.directory.path().join("policy");
    let write = |revision: &str, amount: &str| {
        std::fs::create_dir(mount.join(revision)).unwrap();
        std::fs::write(mount.join(revision).join("a.yaml"), budget("a", amount)).unwrap();
        symlink(revision, mount.join("..tmp")).unwrap();
        std::fs::rename(mount.join("..tmp"), mount.join("..data")).unwrap();
    };
    write("..1", "5");
    symlink("..data/a.yaml", mount.join("a.yaml")).unwrap();
    operator.until("the first revision", |status| amount(status, "a").as_deref() == Some("5.00"));
    write("..2", "6");
    std::fs::remove_dir_all(mount.join("..1")).unwrap();
    operator.until("the second revision", |status| amount(status, "a").as_deref() == Some("6.00"));
}

#[test]
fn settings_are_taken_while_it_runs_and_bad_ones_are_reported() {
    let all = budget("a", "5");
    let operator = Operator::start(&[("a.yaml", &all)], "plainText: true\n");
    let file = operator.directory.path().join("plimsoll.yaml");
    let before = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{before}mode: Observe\n")).unwrap();
    operator.until("observing", |status| status["table"][0]["enforced"] == "observe");
    std::fs::write(&file, format!("{before}mode: Obey\n")).unwrap();
    let status = operator.until("the fault", |status| status["faults"][0].is_object());
    let message = status["faults"][0]["message"].as_str().unwrap();
    assert!(message.contains("Obey") && message.contains("last good settings stay"), "{message}");
    assert_eq!(status["table"][0]["enforced"], "observe");
    std::fs::write(&file, format!("{before}rideThrough: 5m\n")).unwrap();
    let status = operator.until("what needs a restart", |status| {
        status["faults"][0]["message"].as_str().is_some_and(|message| message.contains("rideThrough"))
    });
    assert_eq!(status["table"][0]["enforced"], "0/0");
}

#[test]
fn it_ends_at_once_when_told_and_starts_again_with_its_ledger() {
    let all = budget("a", "5");
    let mut operator = Operator::start(&[("a.yaml", &all)], "plainText: true\n");
    operator.until("the budget", |status| amount(status, "a").is_some());
    let metrics = operator.get("/metrics");
    assert!(metrics.contains("plimsoll_ledger_commits_total"), "{metrics}");
    assert!(metrics.contains("plimsoll_operator_objects{kind=\"AIBudget\"} 1"), "{metrics}");
    assert_eq!(operator.get("/healthz"), "ok\n");
    let begin = Instant::now();
    let ended = operator.process.terminate(PATIENCE).unwrap();
    assert!(ended.success(), "{ended}: {}", operator.log());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    operator.process = spawn(operator.directory.path());
    operator.ready();
    operator.process.kill();
    operator.process = spawn(operator.directory.path());
    operator.ready();
    operator.until("the budget", |status| amount(status, "a").is_some());
}

#[test]
fn what_makes_a_start_impossible_is_said_with_its_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let run = |config: &str, manifests: &str| {
        std::fs::write(directory.path().join("plimsoll.yaml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.current_dir(directory.path());
        command.args(["operator", "--config", "plimsoll.yaml", "--manifests", manifests]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = harness::free_port().unwrap();
    let port = taken.local_addr().unwrap().port();
    let ledger = "ledger: {sqlite: {path: ledger.db}}\n";
    assert!(run(ledger, ".").contains("plimsoll.yaml: tls is missing; give ca, cert and key"));
    assert!(run(&format!("{ledger}plaintext: true\n"), ".").contains("plimsoll.yaml:2: unknown field"));
    let listen = format!("{ledger}plainText: true\nlisten: {{http: \"127.0.0.1:{port}\"}}\n");
    assert!(run(&listen, ".").contains("set listen.http to a free address"));
    let grpc = harness::free_port().unwrap();
    let listen = format!(
        "{ledger}plainText: true\nlisten: {{http: \"127.0.0.1:{free}\", grpc: \"127.0.0.1:{grpc}\"}}\n"
    );
    assert!(run(&listen, "missing").contains("--manifests missing can't be read; give a directory"));
    let tls =
        format!("{listen}tls: {{ca: no.pem, cert: no.pem, key: no.pem}}\n").replace("plainText: true\n", "");
    assert!(run(&tls, ".").contains("no.pem can't be read"));
}

#[test]
fn whoever_has_no_certificate_gets_neither_keys_nor_slices() {
    let directory = tempfile::tempdir().unwrap();
    let authority = harness::certs::Authority::new(directory.path()).unwrap();
    let own = authority.issue("operator", &["127.0.0.1", "localhost"]).unwrap();
    let tls = format!(
        "tls: {{ca: {}, cert: {}, key: {}}}\n",
        directory.path().join("ca.pem").display(),
        own.cert.display(),
        own.key.display()
    );
    let operator = Operator::start(&[("objects.yaml", OBJECTS)], &tls);
    // HTTP/2's preface in plain text is answered by nothing but the end of the connection.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", operator.grpc)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Write::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
    assert!(answer.len() < 16, "{answer:?}");
}

/// What a gateway that holds `held` is told first.
fn policy(operator: &Operator, held: &[(PolicyKey, PolicyVersion)]) -> PolicyDelta {
    let hello = Hello {
        gateway: "gw".to_owned(),
        epoch: Epoch(u128::from(std::process::id())),
        log: LogState::New,
        totals: vec![],
        sequence: 0,
        policy: held.to_vec(),
    };
    let server = format!("http://127.0.0.1:{}", operator.grpc);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let heard = async {
        let channel = tonic::transport::Endpoint::from_shared(server).unwrap().connect().await.unwrap();
        let mut client = LedgerClient::new(channel);
        let said = tokio_stream::iter([FromGateway::Hello(hello).into()]).chain(tokio_stream::pending());
        let mut heard = client.connect(said).await.unwrap().into_inner();
        while let Some(message) = heard.message().await.unwrap() {
            if let FromLedger::PolicyDelta(delta) = message.try_into().unwrap() {
                return delta;
            }
        }
        panic!("the stream ended without policy");
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, heard).await.unwrap() })
}

fn fault<'a>(status: &'a Value, place: &str) -> Option<&'a Value> {
    status["faults"].as_array().unwrap().iter().find(|fault| fault["place"].as_str() == Some(place))
}

#[test]
fn a_typing_error_and_a_restart_lift_no_budget() {
    let both = budget("a", "500") + &budget("b", "7");
    let zone = budget("z", "9");
    let mut operator = Operator::start(&[("budgets.yaml", &both), ("zone.yaml", &zone)], "plainText: true\n");
    operator.until("the budgets", |status| amount(status, "z").is_some());
    let budgets = |delta: &PolicyDelta| -> Vec<(PolicyKey, PolicyVersion)> {
        let objects = delta.objects.iter().map(|object| (object.key.clone(), object.version));
        objects.filter(|(key, _)| matches!(key, PolicyKey::Budget(_))).collect()
    };
    let held: Vec<_> =
        policy(&operator, &[]).objects.iter().map(|object| (object.key.clone(), object.version)).collect();
    assert!(operator.process.terminate(PATIENCE).unwrap().success());

    // One file is no YAML, one object is good for its schema and no more, one is new.
    std::fs::write(operator.policy("budgets.yaml"), "spec: {limits: [").unwrap();
    let nowhere = "amount: 10, window: {period: Month, timeZone: Europe/Nowhere}";
    std::fs::write(operator.policy("zone.yaml"), format!("\n{}", zone.replace("amount: 9", nowhere)))
        .unwrap();
    std::fs::write(operator.policy("new.yaml"), budget("c", "3")).unwrap();
    operator.process = spawn(operator.directory.path());
    operator.ready();
    let status = operator.until("the new budget", |status| amount(status, "c").is_some());
    let delta = policy(&operator, &held);
    assert_eq!(delta.removed, [], "what a gateway holds stays in force");
    let new = PolicyKey::Budget(ObjectName::new("finance", "c"));
    assert_eq!(budgets(&delta).into_iter().map(|(key, _)| key).collect::<Vec<_>>(), [new]);
    let fresh: Vec<_> =
        budgets(&policy(&operator, &[])).into_iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(
        fresh,
        ["budget/finance/a", "budget/finance/b", "budget/finance/c", "budget/finance/z"],
        "a gateway that starts now is told of all of them too"
    );

    // And it is said: what is wrong, by file and line, and what is in force in its place.
    assert!(fault(&status, "policy/budgets.yaml:1").is_some(), "{status:#}");
    let untold = fault(&status, &format!("{}/ledger.db", operator.directory.path().display()));
    let untold = untold.unwrap()["message"].as_str().unwrap();
    assert!(untold.contains("finance/a, finance/b. They stay in force"), "{untold}");
    let bad = fault(&status, "policy/zone.yaml:2").unwrap();
    assert_eq!(bad["object"], "AIBudget finance/z");
    let message = bad["message"].as_str().unwrap();
    assert!(message.contains("spec.limits[0].window.timeZone \"Europe/Nowhere\""), "{message}");
    assert!(message.ends_with("The version before it stays in force."), "{message}");
    assert_eq!(amount(&status, "z").unwrap(), "9.00", "it is there, with its status");
    let conditions = status["budgets"]["finance/z"]["conditions"].as_array().unwrap();
    assert!(
        conditions.iter().any(|condition| condition["type"] == "Stalled" && condition["status"] == "True")
    );
    assert!(operator.log().contains("policy/zone.yaml:2"));

    // Mended: what is not there is deleted now, and only now.
    std::fs::write(operator.policy("budgets.yaml"), budget("a", "500")).unwrap();
    std::fs::write(operator.policy("zone.yaml"), &zone).unwrap();
    operator.until("no faults", |status| status["faults"].as_array().unwrap().is_empty());
    let delta = policy(&operator, &held);
    assert_eq!(delta.removed, [PolicyKey::Budget(ObjectName::new("finance", "b"))]);
    operator.process.kill();
    std::fs::write(operator.policy("budgets.yaml"), "spec: {limits: [").unwrap();
    operator.process = spawn(operator.directory.path());
    operator.ready();
    assert_eq!(policy(&operator, &held).removed, delta.removed, "what was deleted does not come back");
}

#[test]
fn a_link_that_leads_nowhere_is_named_and_deletes_nothing() {
    use std::os::unix::fs::symlink;
    let all = budget("a", "5");
    let operator = Operator::start(&[("a.yaml", &all)], "plainText: true\n");
    operator.until("the budget", |status| amount(status, "a").is_some());
    symlink("not-there", operator.policy(".new")).unwrap();
    std::fs::rename(operator.policy(".new"), operator.policy("a.yaml")).unwrap();
    let status = operator.until("the fault", |status| fault(status, "policy/a.yaml").is_some());
    let message = fault(&status, "policy/a.yaml").unwrap()["message"].as_str().unwrap();
    assert!(message.contains("is a link to not-there, which is not there"), "{message}");
    // A budget that would be deleted for its absence is deleted before one that is missing later.
    std::fs::write(operator.policy("b.yaml"), budget("b", "6")).unwrap();
    operator.until("another budget", |status| amount(status, "b").is_some());
    std::fs::remove_file(operator.policy("b.yaml")).unwrap();
    let status = operator.until("its deletion", |status| amount(status, "b").is_none());
    assert_eq!(amount(&status, "a").unwrap(), "5.00");
    std::fs::remove_file(operator.policy("a.yaml")).unwrap();
    operator.until("the deletion", |status| amount(status, "a").is_none());
}

#[test]
fn a_log_level_that_is_none_is_said() {
    let directory = tempfile::tempdir().unwrap();
    for (value, said) in [("debgu", true), ("plimsoll=loud", true), ("warn,plimsoll=debug", false)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.current_dir(directory.path()).env("PLIMSOLL_LOG", value);
        let output = command.args(["operator", "--config", "none", "--manifests", "."]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.contains("info is used"), said, "{value}: {text}");
        let error = "plimsoll: none: can't be read: No such file or directory";
        assert_eq!(text.matches("No such file or directory").count(), 1, "a cause is said once: {text}");
        assert!(text.contains(error), "{text}");
    }
}
