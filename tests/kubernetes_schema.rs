//! The CRDs on a real API server: accepted, every rule run, and of one mind with `plimsoll validate`.
//!
//! `wrong_manifests.yaml` is read by `plan/tests/wrong_manifests.rs` too, which compares what each entry is
//! told offline; here it is what the API server tells.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use plimsoll_api::{AIBudget, API_VERSION};
use plimsoll_sim::harness::kubernetes::ControlPlane;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: finance}
---
apiVersion: v1
kind: Namespace
metadata: {name: plimsoll-system}
";

struct Cluster {
    plane: ControlPlane,
    _directory: tempfile::TempDir,
}

impl Cluster {
    fn start(crds: &[Value]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plane = ControlPlane::start(directory.path()).unwrap();
        let cluster = Self { plane, _directory: directory };
        cluster.define(crds);
        cluster.must(&["apply", "-f", "-"], NAMESPACES);
        cluster
    }

    /// Applies `crds` and waits until they are served.
    fn define(&self, crds: &[Value]) {
        let said = self.must(&["apply", "--server-side", "-f", "-"], &many(crds));
        assert!(!said.contains("Warning"), "{said}");
        self.must(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "");
    }

    /// Whether kubectl succeeds, and all that it says.
    fn kubectl(&self, args: &[&str], input: &str) -> (bool, String) {
        let mut command = self.plane.kubectl_command();
        command.arg("--request-timeout=60s").args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // It writes while it reads.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), said)
    }

    fn must(&self, args: &[&str], input: &str) -> String {
        let (done, said) = self.kubectl(args, input);
        assert!(done, "kubectl {args:?}: {said}");
        said
    }

    fn dry_run(&self, text: &str) -> (bool, String) {
        self.kubectl(&["apply", "--dry-run=server", "-f", "-"], text)
    }
}

fn crds() -> Vec<Value> {
    plimsoll_api::crds().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect()
}

fn many(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}

fn schema(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// Every schema in `schema`, to be changed.
fn each(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Some(fields) = schema.as_object_mut() else { return };
    change(fields);
    for key in ["items", "additionalProperties"] {
        fields.get_mut(key).into_iter().for_each(|below| each(below, change));
    }
    for below in fields.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        each(below.1, change);
    }
}

/// Every rule's message in `crd`.
fn messages(crd: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    each(&mut schema(crd).clone(), &mut |schema| {
        for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
            found.insert(rule["message"].as_str().unwrap().to_owned());
        }
    });
    found
}

/// What is wrong with `text` offline, a line each; empty if nothing is.
fn offline(text: &str) -> Vec<String> {
    let mut told = Vec::new();
    for document in serde_saphyr::from_multiple::<Value>(text).unwrap() {
        match plimsoll_api::validate(&document) {
            Err(problems) => told.extend(problems.iter().map(ToString::to_string)),
            Ok(object) => {
                let problems = plimsoll_plan::check(&object, &plimsoll_plan::Settings::default());
                told.extend(problems.iter().map(ToString::to_string));
            }
        }
    }
    told
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrong {
    manifest: String,
    /// What the API server says; absent: it accepts it, and the condition's reason says why it is wrong.
    server: Option<String>,
    #[serde(rename = "condition")]
    _condition: Option<String>,
    #[serde(rename = "offline")]
    _offline: String,
}

/// What kubectl says of one refused object, without the words that are the same for all.
fn essence(said: &str) -> String {
    let said = said.trim();
    let rest = ["is invalid: ", "error when creating \"STDIN\": ", "error: "]
        .iter()
        .find_map(|begin| said.split_once(begin))
        .map_or(said, |(_, rest)| rest);
    let lines = rest.lines().map(|line| line.trim().trim_start_matches("* "));
    let told = lines.filter(|line| !line.is_empty() && !line.starts_with("<nil>: Invalid value: null: some"));
    told.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_api_server_accepts_the_crds_and_explains_their_fields() {
    let crds = crds();
    let cluster = Cluster::start(&crds);
    for crd in &crds {
        let name = crd["metadata"]["name"].as_str().unwrap();
        let stored = cluster.must(&["get", "crd", name, "-o", "json"], "");
        let stored: Value = serde_json::from_str(&stored).unwrap();
        let conditions = stored["status"]["conditions"].as_array().unwrap();
        let holds = |kind: &str| {
            conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
        };
        assert!(
            holds("NamesAccepted") && holds("Established") && !holds("NonStructuralSchema"),
            "{conditions:?}"
        );
    }
    // Before 1.34 the cost check did not see how short the text of an amount is: it must pass there, too.
    let mut older = crds.clone();
    for crd in &mut older {
        each(&mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut |schema| {
            if schema.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
                schema.remove("maxLength");
            }
        });
    }
    assert_ne!(older, crds);
    cluster.must(&["apply", "--server-side", "--dry-run=server", "-f", "-"], &many(&older));

    let explain = |path: &str| -> String {
        cluster.must(&["explain", path], "").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let budget = explain("aibudget");
    assert!(budget.contains("spec: {limits: [{name: month, amount: 500}]}"), "{budget}");
    let amount = explain("aibudget.spec.limits.amount");
    assert!(
        amount.contains("an integer or a decimal string, 0 or more, like `500` or `\"12.50\"`"),
        "{amount}"
    );
    let unit = explain("aibudget.spec.limits.unit");
    assert!(unit.contains("USD: US dollars, by the prices on ModelBackends."), "{unit}");
    assert!(unit.contains("Default USD."), "{unit}");
}

#[test]
fn each_wrong_manifest_is_told_what_to_do_by_the_api_server_too_and_each_rule_is_broken_once() {
    let crds = crds();
    let cluster = Cluster::start(&crds);
    let entries: Vec<Wrong> = serde_saphyr::from_str(include_str!("wrong_manifests.yaml")).unwrap();
    let mut wrong = String::new();
    let mut told = String::new();
    for Wrong { manifest, server, .. } in &entries {
        let (accepted, said) = cluster.dry_run(manifest);
        let said = essence(&said);
        if accepted != server.is_none() || server.as_ref().is_some_and(|server| said != server.trim()) {
            wrong += &format!("---\n{manifest}\nis told:\n{said}\n");
        }
        assert!(!offline(manifest).is_empty(), "offline nothing is wrong with\n{manifest}");
        told += &said;
    }
    assert!(wrong.is_empty(), "{wrong}");
    let silent: Vec<String> =
        crds.iter().flat_map(messages).filter(|message| !told.contains(message.as_str())).collect();
    assert!(silent.is_empty(), "no entry of wrong_manifests.yaml breaks the rules that say {silent:#?}");

    // A client that does not ask for strictness is warned at least.
    let typo = entries.iter().find(|entry| entry.manifest.contains("amuont")).unwrap();
    let (_, said) =
        cluster.kubectl(&["apply", "--dry-run=server", "--validate=warn", "-f", "-"], &typo.manifest);
    assert!(said.contains("Warning: unknown field \"spec.limits[0].amuont\""), "{said}");
}

/// One way in which an object is wrong.
struct Break {
    /// Where the wrong value stands in the spec, as a JSON pointer.
    pointer: String,
    value: Value,
    /// The field that must be named.
    field: String,
    /// What the API server must say of it.
    says: String,
}

/// Each bound of `schema` broken once at `value`, which stands at `pointer` and is called `field`.
fn breaks(schema: &Value, value: &Value, pointer: &str, field: &str, into: &mut Vec<Break>) {
    let mut push = |value: Value, field: String, says: &str| {
        into.push(Break { pointer: pointer.to_owned(), value, field, says: says.to_owned() });
    };
    let number = |key: &str| schema[key].as_f64().map(|number| format!("{number}").parse::<i64>().unwrap());
    let count = |key: &str| schema[key].as_u64().map(|count| usize::try_from(count).unwrap());
    push(json!(true), field.to_owned(), "must be of type");
    if schema["enum"].is_array() {
        push(json!("Nope"), field.to_owned(), "Unsupported value");
    }
    if let Some(least) = number("minimum") {
        push(json!(least - 1), field.to_owned(), "greater than or equal to");
    }
    if let Some(most) = number("maximum") {
        push(json!(most + 1), field.to_owned(), "less than or equal to");
    }
    if let Some(most) = count("maxLength") {
        push(json!("1".repeat(most + 1)), field.to_owned(), "Too long");
    }
    let is_text = schema["type"] == "string" || schema["x-kubernetes-int-or-string"] == true;
    if let (true, Some(rules)) = (is_text, schema["x-kubernetes-validations"].as_array()) {
        push(json!("\n"), field.to_owned(), rules[0]["message"].as_str().unwrap());
    }
    for key in schema["required"].as_array().into_iter().flatten().map(|key| key.as_str().unwrap()) {
        let mut without = value.clone();
        without.as_object_mut().unwrap().remove(key).expect("a full manifest has every field");
        push(without, format!("{field}.{key}"), "Required value");
    }
    if let Some(items) = value.as_array() {
        let nth = |number: usize| match &items[0] {
            Value::String(_) => json!(format!("v{number}")),
            item => {
                let mut item = item.clone();
                if let Some(name) = item.get_mut("name") {
                    *name = json!(format!("n{number}"));
                }
                item
            }
        };
        if count("minItems").is_some() {
            push(json!([]), field.to_owned(), "should have at least 1 items");
        }
        push((0..=count("maxItems").unwrap()).map(nth).collect(), field.to_owned(), "Too many");
        if schema["x-kubernetes-list-type"] != "atomic" {
            let twice: Vec<&Value> = items.iter().chain([&items[0]]).collect();
            push(json!(twice), format!("{field}[{}]", items.len()), "Duplicate value");
        }
        breaks(&schema["items"], &items[0], &format!("{pointer}/0"), &format!("{field}[0]"), into);
    } else if let (Some(fields), false) = (value.as_object(), schema["additionalProperties"].is_null()) {
        push(json!({}), field.to_owned(), "should have at least 1 properties");
        let all: Map<String, Value> =
            (0..=count("maxProperties").unwrap()).map(|number| (format!("k{number}"), json!("v"))).collect();
        push(Value::Object(all), field.to_owned(), "Too many");
        for (key, value) in fields {
            let (pointer, field) = (format!("{pointer}/{key}"), format!("{field}[{key}]"));
            breaks(&schema["additionalProperties"], value, &pointer, &field, into);
        }
    } else if let Some(fields) = value.as_object() {
        for (key, schema) in schema["properties"].as_object().unwrap() {
            let value = fields.get(key).unwrap_or_else(|| panic!("full_manifests.yaml lacks {field}.{key}"));
            breaks(schema, value, &format!("{pointer}/{key}"), &format!("{field}.{key}"), into);
        }
    }
}

#[test]
fn each_bound_of_each_field_refuses_on_the_api_server_and_offline_and_names_the_field() {
    let crds = crds();
    let cluster = Cluster::start(&crds);
    let full = include_str!("full_manifests.yaml");
    let objects: Vec<Value> = serde_saphyr::from_multiple(full).unwrap();
    assert!(cluster.dry_run(full).0 && offline(full).is_empty(), "{:?}", offline(full));
    for object in objects {
        let kind = object["kind"].as_str().unwrap();
        let crd = crds.iter().find(|crd| crd["spec"]["names"]["kind"] == kind).unwrap();
        let mut all = Vec::new();
        breaks(&schema(crd)["properties"]["spec"], &object["spec"], "/spec", "spec", &mut all);
        assert!(all.len() > 30, "{kind}: {}", all.len());
        let broken: Vec<Value> = all
            .iter()
            .enumerate()
            .map(|(index, Break { pointer, value, .. })| {
                let mut object = object.clone();
                object["metadata"]["name"] = json!(format!("b-{index}"));
                *object.pointer_mut(pointer).unwrap() = value.clone();
                object
            })
            .collect();
        let (_, said) = cluster.dry_run(&many(&broken));
        // A line each: `… AIBudget.plimsoll.dev "b-17" is invalid: …`.
        let told: BTreeMap<&str, &str> = said
            .lines()
            .filter_map(|line| line.split_once("plimsoll.dev \"")?.1.split_once("\" is invalid: "))
            .collect();
        for (index, Break { field, says, value, .. }) in all.iter().enumerate() {
            let server = told.get(&*format!("b-{index}")).copied().unwrap_or_default();
            // Of a label's wrong type it says `matchLabels.team`, of all else `matchLabels[team]`.
            let dotted = field.replace("[team]", ".team");
            let named = [field, &dotted].map(|field| server.split_once(&format!("{field}: ")));
            assert!(
                named.into_iter().flatten().any(|(_, rest)| rest.contains(says.as_str())),
                "{kind} {field} of {value}: the API server should say {says:?}, not {server}\n{said}"
            );
            let here = offline(&broken[index].to_string());
            assert!(
                here.iter().any(|line| line.contains(field.as_str())),
                "{kind} {field} of {value}: {here:?}"
            );
        }
    }
}

#[test]
fn what_is_right_is_right_on_the_api_server_and_offline() {
    let cluster = Cluster::start(&crds());
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut texts = vec![include_str!("good_manifests.yaml").to_owned()];
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "yaml") {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    assert!(texts.len() >= 3);
    for text in texts {
        let said = cluster.must(&["apply", "--dry-run=server", "-f", "-"], &text);
        assert!(!said.contains("Warning"), "{said}");
        assert_eq!(offline(&text), Vec::<String>::new());
    }
}

#[test]
fn kubectl_get_says_at_a_glance_how_objects_stand() {
    let cluster = Cluster::start(&crds());
    let budget = |name: &str| {
        json!({"apiVersion": API_VERSION, "kind": "AIBudget", "metadata": {"name": name, "namespace": "finance"},
            "spec": {"limits": [{"name": "month", "amount": 500}]}})
    };
    let route = json!({"apiVersion": API_VERSION, "kind": "ModelRoute",
        "metadata": {"name": "assistant", "namespace": "finance"},
        "spec": {"tiers": [{"name": "only", "backends": [
            {"backendRef": {"name": "openai", "namespace": "plimsoll-system"}, "model": "gpt-5.2"}]}]}});
    let backend = json!({"apiVersion": API_VERSION, "kind": "ModelBackend",
        "metadata": {"name": "openai", "namespace": "plimsoll-system"},
        "spec": {"provider": {"api": "OpenAI", "baseURL": "https://api.openai.com/v1",
            "apiKeySecretRef": {"name": "openai", "key": "api-key"}}, "models": [{"name": "gpt-5.2"}]}});
    let objects = [budget("invoices"), budget("new"), budget("project"), route, backend];
    cluster.must(&["apply", "-f", "-"], &many(&objects));

    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-01T00:00:00Z"})
    };
    let patch = |kind: &str, namespace: &str, name: &str, status: Value| {
        let status = json!({"status": status}).to_string();
        let args =
            ["patch", kind, name, "-n", namespace, "--subresource=status", "--type=merge", "-p", &status];
        cluster.must(&args, "");
    };
    let ready = condition("Ready", "True", "InForce", "in force");
    patch(
        "aib",
        "finance",
        "invoices",
        json!({
            "tightest": {"limit": "month", "used": "4512.38", "of": "5000.00 USD", "usedPercent": "90.2",
                "resets": "2026-12-01T00:00+01:00", "stage": "Notify"},
            "gateways": {"enforcing": 3, "total": 3},
            "conditions": [ready, condition("Enforced", "True", "Enforced", "every connected gateway enforces it"),
                condition("WithinBudget", "True", "WithinBudget", "every limit has room"),
                condition("PriceKnown", "True", "PriceKnown", "")],
        }),
    );
    patch(
        "aib",
        "finance",
        "project",
        json!({
            "tightest": {"limit": "all", "used": "120000", "of": "120000 Tokens", "usedPercent": "100.0",
                "resets": "never", "stage": "Block"},
            "gateways": {"enforcing": 0, "total": 0},
            "conditions": [ready, condition("Enforced", "False", "Observing", "calls are counted")],
        }),
    );
    patch("mroute", "finance", "assistant", json!({"model": "assistant", "conditions": [ready]}));
    patch(
        "mbackend",
        "plimsoll-system",
        "openai",
        json!({"conditions": [
        condition("Ready", "False", "SecretNotFound", "spec.provider.apiKeySecretRef: Secret plimsoll-system/openai does not exist"),
        condition("PriceKnown", "False", "ModelUnpriced", "gpt-5.2 has no price")]}),
    );

    // Without the ages, which pass.
    let table = |args: &[&str]| -> String {
        let text = cluster.must(&[&["get"], args].concat(), "");
        text.lines()
            .map(|line| line.rsplit_once("   ").unwrap_or((line, "")).0.trim_end().to_owned() + "\n")
            .collect()
    };
    assert_eq!(
        table(&["aib", "-n", "finance"]),
        "\
NAME       LIMIT   USED      OF              %       RESETS                   STAGE    ENFORCED    READY
invoices   month   4512.38   5000.00 USD     90.2    2026-12-01T00:00+01:00   Notify   Enforced    True
new
project    all     120000    120000 Tokens   100.0   never                    Block    Observing   True
"
    );
    assert_eq!(
        table(&["mroute", "-n", "finance"]),
        "\
NAME        MODEL       BACKEND   ANSWERS   READY   REASON
assistant   assistant   openai    gpt-5.2   True    InForce
"
    );
    assert_eq!(
        table(&["mbackend", "-n", "plimsoll-system"]),
        "\
NAME     API      URL                         PRICED   READY   REASON
openai   OpenAI   https://api.openai.com/v1   False    False   SecretNotFound
"
    );
    let wide = cluster.must(&["get", "mbackend", "-A", "-o", "wide"], "");
    assert!(
        wide.contains("SECRET")
            && wide.contains("apiKeySecretRef: Secret plimsoll-system/openai does not exist"),
        "{wide}"
    );
    let wide = cluster.must(&["get", "aib", "-A", "-o", "wide"], "");
    assert!(wide.contains("ENFORCING   GATEWAYS   PRICED   MESSAGE"), "{wide}");
    let all = cluster.must(&["get", "plimsoll", "-A"], "");
    for name in [
        "aibudget.plimsoll.dev/invoices",
        "modelroute.plimsoll.dev/assistant",
        "modelbackend.plimsoll.dev/openai",
    ] {
        assert!(all.contains(name), "{all}");
    }
}

#[test]
fn two_managers_can_own_a_limit_each() {
    let cluster = Cluster::start(&crds());
    let apply = |manager: &str, limit: &str| {
        let budget = json!({"apiVersion": API_VERSION, "kind": "AIBudget",
            "metadata": {"name": "shared", "namespace": "finance"},
            "spec": {"limits": [{"name": limit, "amount": 20}]}});
        let manager = format!("--field-manager={manager}");
        cluster.must(&["apply", "--server-side", &manager, "-f", "-"], &budget.to_string());
    };
    apply("git", "month");
    apply("colleague", "day");
    let limits =
        cluster.must(&["get", "aib", "shared", "-n", "finance", "-o", "jsonpath={.spec.limits[*].name}"], "");
    assert_eq!(limits, "month day");
}

#[test]
fn an_object_from_before_a_rule_is_read_and_its_status_written() {
    let mut lax = crds();
    for crd in &mut lax {
        each(&mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut |schema| {
            for key in ["x-kubernetes-validations", "maxLength", "maximum", "default"] {
                schema.remove(key);
            }
        });
    }
    let cluster = Cluster::start(&lax);
    let old = json!({"apiVersion": API_VERSION, "kind": "AIBudget",
        "metadata": {"name": "before-the-rule", "namespace": "finance"},
        "spec": {"limits": [{"name": "Month 1", "amount": "1,000"}],
            "stages": [{"trigger": "Used", "percent": 5000, "action": "Block"}]}});
    cluster.must(&["apply", "-f", "-"], &old.to_string());
    cluster.define(&crds());
    // The new rules are served as soon as they refuse.
    plimsoll_sim::harness::wait_until("the rules", std::time::Duration::from_secs(30), || {
        let mut new = old.clone();
        new["metadata"]["name"] = json!("after");
        if cluster.dry_run(&new.to_string()).0 { Err("it is accepted".to_owned()) } else { Ok(()) }
    })
    .unwrap();

    let stored = cluster.must(&["get", "aib", "before-the-rule", "-n", "finance", "-o", "json"], "");
    let budget: AIBudget = serde_json::from_str(&stored).unwrap();
    assert_eq!(budget.spec.limits[0].name, "Month 1");
    let status = r#"{"status": {"observedGeneration": 1}}"#;
    let patch = ["patch", "aib", "before-the-rule", "-n", "finance", "--type=merge", "-p"];
    cluster.must(&[&patch[..], &[status, "--subresource=status"]].concat(), "");
    // Another field can change, with a warning; the wrong one can't become another wrong one. (A rule on the
    // whole object has no such mercy: the only one is that of metadata.name, which can't change.)
    cluster.must(&[&patch[..], &[r#"{"spec": {"contact": "ada"}}"#]].concat(), "");
    let (done, said) = cluster.kubectl(
        &[&patch[..], &[r#"{"spec": {"limits": [{"name": "Month 2", "amount": 1}]}}"#]].concat(),
        "",
    );
    assert!(!done && said.contains("spec.limits[0].name"), "{said}");
    cluster.must(&["delete", "aib", "before-the-rule", "-n", "finance"], "");
}
