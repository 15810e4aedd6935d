//! `plimsoll validate` as people and pipelines call it: what it prints, and with which code it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

const BUDGET: &str = "\
apiVersion: plimsoll.dev/v1alpha1
kind: AIBudget
metadata:
  name: all
  namespace: finance
spec:
  limits:
  - name: month
    amount: 500
";
const BACKEND: &str = "\
apiVersion: plimsoll.dev/v1alpha1
kind: ModelBackend
metadata: {name: openai, namespace: platform}
spec:
  provider: {api: OpenAI, baseURL: https://api.openai.com/v1}
  models: [{name: gpt-5, price: {inputPerMillion: 1, outputPerMillion: 2}}]
";
const ROUTE: &str = "\
apiVersion: plimsoll.dev/v1alpha1
kind: ModelRoute
metadata: {name: assistant, namespace: finance}
spec:
  tiers:
  - name: only
    backends:
    - {backendRef: {name: openai, namespace: platform}, model: gpt-5}
";

struct Directory(tempfile::TempDir);

impl Directory {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = directory.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        directory
    }

    /// Exit code and standard output of `plimsoll validate ARGS`.
    fn validate(&self, args: &[&str]) -> (i32, String) {
        self.pipe(args, b"")
    }

    fn pipe(&self, args: &[&str], input: &[u8]) -> (i32, String) {
        let Output { status, stdout, stderr } = run(self.0.path(), args, input);
        assert_eq!(String::from_utf8_lossy(&stderr), "");
        (status.code().unwrap(), String::from_utf8(stdout).unwrap())
    }
}

fn run(directory: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.current_dir(directory).arg("validate").args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn everything_wrong_is_told_by_file_line_and_field() {
    let wrong = BUDGET.replace("500", "12.5").replace("month", "Month 1");
    let directory = Directory::new(&[("a.yaml", &format!("# both\n{BUDGET}---\n{wrong}"))]);
    let told = "\
a.yaml:20: AIBudget finance/all: spec.limits[0].amount 12.5 is not an integer; write a decimal number in quotes, \"12.5\"
a.yaml:19: AIBudget finance/all: spec.limits[0].name \"Month 1\" does not fit; use lower case letters, digits and -, with a letter or digit at both ends
1 good, 1 bad
";
    assert_eq!(directory.validate(&["a.yaml"]), (1, told.to_owned()));
    let (code, json) = directory.validate(&["a.yaml", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(code, 1);
    assert_eq!((&json["good"], &json["bad"], &json["skipped"]), (&1.into(), &1.into(), &0.into()));
    let first = &json["findings"][0];
    assert_eq!(first["line"], 20);
    assert_eq!(first["file"], "a.yaml");
    assert_eq!(first["object"], "AIBudget finance/all");
    assert_eq!(first["field"], "spec.limits[0].amount");
    assert_eq!(first["severity"], "error");
}

#[test]
fn what_only_the_plan_can_see_is_told_by_its_line_too() {
    let zone = BUDGET.replace("amount: 500", "amount: 500\n    window: {timeZone: Europe/Belrin}");
    let plain = BACKEND.replace("https://api.openai.com", "http://10.0.0.1");
    let settings = "ledger: {sqlite: {path: x}}\nplainText: true\nrootNamespace: platform\n";
    let directory =
        Directory::new(&[("all.yaml", &format!("{zone}---\n{plain}")), ("plimsoll.yaml", settings)]);
    let zone = "all.yaml:10: AIBudget finance/all: spec.limits[0].window.timeZone \"Europe/Belrin\" is not an IANA time \
                zone; did you mean \"Europe/Berlin\"?\n";
    let (code, text) = directory.validate(&["all.yaml"]);
    assert_eq!(code, 1);
    assert!(text.starts_with(zone), "{text}");
    assert!(text.contains("\nall.yaml:16: ModelBackend platform/openai: spec.provider.baseURL"), "{text}");
    assert!(text.ends_with("0 good, 2 bad\n"), "{text}");
    // There it is believed.
    let believed = (1, format!("{zone}1 good, 1 bad\n"));
    assert_eq!(directory.validate(&["all.yaml", "--config", "plimsoll.yaml"]), believed);
    assert_eq!(directory.validate(&["all.yaml", "--root-namespace", "platform"]), believed);
}

#[test]
fn a_directory_is_read_as_the_operator_reads_it_and_other_kinds_are_skipped() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 1.5}\n";
    let directory = Directory::new(&[
        ("policy/a.yaml", &format!("{deployment}---\n{BUDGET}")),
        ("policy/deep/er/b.yml", BACKEND),
        ("policy/c.json", r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}"#),
        ("policy/.hidden.yaml", "spec: ["),
        ("policy/notes.txt", "spec: ["),
        ("policy/kustomization.yaml", "resources: [a.yaml]\n"),
    ]);
    assert_eq!(directory.validate(&["policy"]), (0, "2 good, 0 bad, 3 skipped (other kinds)\n".to_owned()));
    // Named alone, it was meant to be a manifest.
    let (code, text) = directory.validate(&["policy/kustomization.yaml"]);
    assert!(code == 1 && text.starts_with("policy/kustomization.yaml:1: kind \"\" is not known"), "{text}");
}

#[test]
fn standard_input_is_a_file_like_others() {
    let directory = Directory::new(&[]);
    let json = BUDGET.replace("  namespace: finance\n", "");
    let told = "stdin:3: AIBudget all: metadata.namespace is missing; add it\n0 good, 1 bad\n";
    assert_eq!(directory.pipe(&["-"], json.as_bytes()), (1, told.to_owned()));
    let good = (0, "1 good, 0 bad\n".to_owned());
    assert_eq!(directory.pipe(&["-", "-n", "finance"], json.as_bytes()), good);
    assert_eq!(directory.pipe(&["-"], format!("\u{feff}{BUDGET}").as_bytes()), good, "a byte order mark");
    assert_eq!(directory.pipe(&["-"], BUDGET.replace('\n', "\r\n").as_bytes()), good, "Windows lines");
}

#[test]
fn nothing_to_check_is_no_success() {
    let directory = Directory::new(&[("empty.yaml", "# nothing\n"), ("none/notes.txt", "")]);
    let nothing = "nothing to check was found; give files, directories or - for standard input\n";
    for args in [["-"], ["empty.yaml"], ["none"]] {
        assert_eq!(directory.validate(&args), (1, nothing.to_owned()), "{args:?}");
    }
    assert_eq!(run(directory.0.path(), &[], b"").status.code(), Some(2), "wrong usage");
}

#[test]
fn what_cannot_be_read_is_said_and_the_rest_is_checked() {
    let directory = Directory::new(&[("a.yaml", BUDGET)]);
    let mut torn = format!("{BUDGET}# ").into_bytes();
    torn.extend([0xc3]);
    std::fs::write(directory.0.path().join("torn.yaml"), torn).unwrap();
    let told = "\
none.yaml: can't be read: No such file or directory (os error 2)
torn.yaml:10: byte 0xc3 is not UTF-8 text; save the file as UTF-8
1 good, 2 bad
";
    assert_eq!(directory.validate(&["none.yaml", "torn.yaml", "a.yaml"]), (1, told.to_owned()));
}

#[test]
fn an_object_given_twice_is_a_mistake_in_one_file_and_a_warning_in_two() {
    let directory = Directory::new(&[
        ("a.yaml", BUDGET),
        ("b.yaml", BUDGET),
        ("c.yaml", &format!("{BUDGET}---\n{BUDGET}")),
    ]);
    let told = "b.yaml:1: AIBudget finance/all: warning: stands in a.yaml:1 too; in one cluster the last one applied \
                counts\n2 good, 0 bad, 1 warning\n";
    assert_eq!(directory.validate(&["a.yaml", "b.yaml"]), (0, told.to_owned()));
    let told = "c.yaml:11: AIBudget finance/all: stands in line 1 too; remove one of them\n1 good, 1 bad\n";
    assert_eq!(directory.validate(&["c.yaml"]), (1, told.to_owned()));
}

#[test]
fn a_route_is_warned_of_backends_only_where_they_should_be() {
    let model = ROUTE.replace("model: gpt-5", "model: gpt-6");
    let backend = ROUTE.replace("name: openai", "name: openia");
    let directory = Directory::new(&[("b.yaml", BACKEND), ("m.yaml", &model), ("r.yaml", &backend)]);
    assert_eq!(directory.validate(&["r.yaml"]), (0, "1 good, 0 bad\n".to_owned()), "they may be elsewhere");
    let (code, text) = directory.validate(&["b.yaml", "r.yaml"]);
    let told = "r.yaml:8: ModelRoute finance/assistant: warning: spec.tiers[0].backends[0].backendRef: ModelBackend \
                platform/openia does not exist; create it, or name another\n2 good, 0 bad, 1 warning\n";
    assert_eq!((code, &*text), (0, told));
    let allowed = BACKEND.replace("spec:", "spec:\n  allowedRoutes: {namespaces: {from: All}}");
    std::fs::write(directory.0.path().join("b.yaml"), allowed).unwrap();
    let (code, text) = directory.validate(&["b.yaml", "m.yaml"]);
    assert!(
        code == 0
            && text
                .contains("m.yaml:8: ModelRoute finance/assistant: warning: spec.tiers[0].backends[0].model"),
        "{text}"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let directory =
        Directory::new(&[("many.yaml", &format!("---\n{}", BUDGET.replace("500", "five")).repeat(5_000))]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.current_dir(directory.0.path()).args(["validate", "many.yaml"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Far more than a pipe takes.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "it found something wrong");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn ten_thousand_documents_take_seconds() {
    let many: String = (0..10_000)
        .map(|number| format!("---\n{}", BUDGET.replace("name: all", &format!("name: b-{number}"))))
        .collect();
    let directory = Directory::new(&[("many.yaml", &many)]);
    let begun = Instant::now();
    assert_eq!(directory.validate(&["many.yaml"]), (0, "10000 good, 0 bad\n".to_owned()));
    println!("10,000 budgets: {:?}", begun.elapsed());
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n{}",
        many.replace("---\n", "")
            .replace("apiVersion", "- apiVersion")
            .replace('\n', "\n  ")
            .replace("  - api", "- api")
    );
    let wrong = list.replace("amount: 500", "amount: 5.5");
    std::fs::write(directory.0.path().join("list.yaml"), wrong).unwrap();
    let begun = Instant::now();
    let (code, text) = directory.validate(&["list.yaml"]);
    println!("a List of 10,000 wrong ones: {:?}", begun.elapsed());
    assert!(code == 1 && text.ends_with("0 good, 10000 bad\n"));
    assert!(
        text.lines().nth(9_999).unwrap().starts_with("list.yaml:90003: AIBudget finance/b-9999: "),
        "{}",
        text.lines().nth(9_999).unwrap()
    );
    assert!(begun.elapsed().as_secs() < 60, "lines are not looked up for each item anew");
}
