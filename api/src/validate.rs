//! A manifest, checked as an API server would: structure first, then the CEL rules.
//!
//! It says everything that is wrong, a line each. What it lets through may still not work (a backend
//! that is missing, a time zone that does not exist): that is a condition, made in `plan`.

use crate::object::{Object, ObjectId};
use crate::structure::{self, Fault, quoted, suggest};
use crate::{AIBudget, API_VERSION, ModelBackend, ModelRoute};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt;
use std::sync::OnceLock;

/// One thing that is wrong with a manifest, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object, `AIBudget finance/all`, as far as it can be named.
    pub object: String,
    /// The field, `spec.limits[0].amount`; empty where it is the whole object.
    pub field: String,
    /// Field, what is wrong, what to do: one line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

impl std::error::Error for Problem {}

/// A kind of ours, ready to check manifests.
struct Kind {
    schema: Value,
    rules: CompiledSchema,
}

/// Every kind that Plimsoll reads.
pub const KINDS: [&str; 5] = ["AIBudget", "ModelRoute", "ModelBackend", "Namespace", "Secret"];

/// The object in `manifest`, with defaults filled in. A status in it is left out.
///
/// # Errors
/// Everything that is wrong with it, at least one problem.
pub fn validate(manifest: &Value) -> Result<Object, Vec<Problem>> {
    let name = identify(manifest);
    let problem = |(field, message): Fault| Problem { object: name.clone(), field, message };
    checked(manifest).map_err(|faults| faults.into_iter().map(problem).collect())
}

fn checked(manifest: &Value) -> Result<Object, Vec<Fault>> {
    if !manifest.is_object() {
        return Err(one("", "the document is not an object; write apiVersion, kind, metadata and spec"));
    }
    let kind = manifest["kind"].as_str().unwrap_or_default();
    if !KINDS.contains(&kind) {
        let hint = suggest(kind, KINDS.into_iter(), "Plimsoll reads");
        return Err(one("kind", &format!("kind {} is not known; {hint}", quoted(kind))));
    }
    let wanted = if matches!(kind, "Namespace" | "Secret") { "v1" } else { API_VERSION };
    let given = manifest["apiVersion"].as_str().unwrap_or_default();
    if given != wanted {
        return Err(one(
            "apiVersion",
            &format!("apiVersion {} is not that of {kind}; write {wanted}", quoted(given)),
        ));
    }
    let mut faults = metadata(manifest, kind);
    faults.extend(unknown_fields(manifest, kind));
    match kind {
        "AIBudget" => {
            custom::<AIBudget>(&BUDGET, manifest, faults).map(|object| Object::Budget(Box::new(object)))
        }
        "ModelRoute" => {
            custom::<ModelRoute>(&ROUTE, manifest, faults).map(|object| Object::Route(Box::new(object)))
        }
        "ModelBackend" => {
            custom::<ModelBackend>(&BACKEND, manifest, faults).map(|object| Object::Backend(Box::new(object)))
        }
        "Namespace" => finish(manifest, &mut faults).map(|object| Object::Namespace(Box::new(object))),
        _ => {
            // Serde's message may hold a value, and a Secret's values are never printed.
            let secret = finish(manifest, &mut faults).map(|object| Object::Secret(Box::new(object)));
            secret.map_err(|mut faults| {
                for (field, message) in faults.iter_mut().filter(|(field, _)| field.is_empty()) {
                    "data".clone_into(field);
                    "data or stringData is not a map of strings; write data in base64, or stringData as plain text"
                        .clone_into(message);
                }
                faults
            })
        }
    }
}

static BUDGET: OnceLock<Kind> = OnceLock::new();
static ROUTE: OnceLock<Kind> = OnceLock::new();
static BACKEND: OnceLock<Kind> = OnceLock::new();

thread_local! {
    /// All functions of CEL; made once, because making it takes longer than using it.
    static VALIDATOR: Validator = Validator::new();
}

impl Kind {
    fn new(crd: &CustomResourceDefinition) -> Self {
        let schema =
            crd.spec.versions.iter().find_map(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
        let schema = serde_json::to_value(schema).unwrap_or_default();
        let mut objects = schema.clone();
        leave_to_others(&mut objects);
        Self { rules: compile_schema(&objects), schema }
    }
}

/// Takes out of `schema` the rules that are checked elsewhere: those on texts and amounts by `structure`,
/// those that ask for a type, which this CEL can't, by `plan`.
fn leave_to_others(schema: &mut Value) {
    const RULES: &str = "x-kubernetes-validations";
    let Some(fields) = schema.as_object_mut() else { return };
    let text = fields.get("type").is_none_or(|kind| kind == "string");
    if let Some(rules) = fields.get_mut(RULES).and_then(Value::as_array_mut) {
        let elsewhere = |rule: &Value| rule["rule"].as_str().is_some_and(|rule| rule.contains("type("));
        rules.retain(|rule| !text && !elsewhere(rule));
    }
    for key in ["properties", "items", "additionalProperties"] {
        match fields.get_mut(key) {
            Some(Value::Object(all)) if key == "properties" => all.values_mut().for_each(leave_to_others),
            Some(one) => leave_to_others(one),
            None => {}
        }
    }
}

fn custom<K: DeserializeOwned + CustomResourceExt>(
    kind: &OnceLock<Kind>,
    manifest: &Value,
    mut faults: Vec<Fault>,
) -> Result<K, Vec<Fault>> {
    let kind = kind.get_or_init(|| Kind::new(&crate::definition::<K>()));
    let mut value = manifest.clone();
    let fields = value.as_object_mut().ok_or_else(Vec::new)?;
    fields.remove("status");
    match fields.get_mut("spec") {
        Some(spec) => structure::check(&kind.schema["properties"]["spec"], spec, "spec", &mut faults),
        None => faults.push(("spec".to_owned(), "spec is missing; add it".to_owned())),
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let broken = VALIDATOR.with(|validator| validator.validate_compiled(&kind.rules, &value, None)).err();
    for error in broken.map(|errors| errors.into_vec()).unwrap_or_default() {
        let message = match error.kind {
            ErrorKind::ValidationFailure => error.message,
            // A rule that can't run must not pass; it is our mistake, and a test runs every rule.
            _ => format!("the rule {:?} cannot be checked: {}", error.rule, error.message),
        };
        let message =
            if error.field_path.is_empty() { message } else { format!("{}: {message}", error.field_path) };
        faults.push((error.field_path, message));
    }
    finish(&value, &mut faults)
}

fn finish<K: DeserializeOwned>(value: &Value, faults: &mut Vec<Fault>) -> Result<K, Vec<Fault>> {
    if !faults.is_empty() {
        return Err(std::mem::take(faults));
    }
    K::deserialize(value).map_err(|error| one("", &format!("the manifest cannot be read: {error}")))
}

/// Fields beside those of `kind`: a field that nobody reads was meant to say something.
fn unknown_fields(manifest: &Value, kind: &str) -> Vec<Fault> {
    let known = match kind {
        "Secret" => &["apiVersion", "kind", "metadata", "data", "stringData", "type", "immutable"][..],
        _ => &["apiVersion", "kind", "metadata", "spec", "status"],
    };
    let fields = manifest.as_object().into_iter().flat_map(|fields| fields.keys());
    let unknown = fields.filter(|key| !known.contains(&key.as_str()));
    unknown
        .map(|key| {
            let settable = known.iter().copied().filter(|field| *field != "status");
            let hint = suggest(key, settable, "the fields here are");
            (key.clone(), format!("{} is not a field; {hint}", quoted(key)))
        })
        .collect()
}

fn one(field: &str, message: &str) -> Vec<Fault> {
    vec![(field.to_owned(), message.to_owned())]
}

/// Name and namespace; the rest of the metadata is the API server's.
fn metadata(manifest: &Value, kind: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let fields = if kind == "Namespace" { &["name"][..] } else { &["name", "namespace"] };
    for field in fields {
        let path = format!("metadata.{field}");
        // Secrets may have longer names, with dots; a namespace never has.
        let (most, dots) = if kind == "Secret" && *field == "name" { (253, true) } else { (63, false) };
        let message = match &manifest["metadata"][*field] {
            Value::Null => format!("{path} is missing; add it"),
            Value::String(text) if text.len() > most => {
                format!("{path} has {} characters; at most {most} are allowed", text.len())
            }
            Value::String(text) if is_name(text, dots) => continue,
            Value::String(text) => {
                format!("{path} {} does not fit; use lower case letters, digits and -", quoted(text))
            }
            _ => format!("{path} is not a string; put it in quotes"),
        };
        faults.push((path, message));
    }
    faults
}

fn is_name(text: &str, dots: bool) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edge = |byte: Option<u8>| byte.is_some_and(inner);
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|byte| inner(byte) || byte == b'-' || (dots && byte == b'.'))
}

fn identify(manifest: &Value) -> String {
    let text = |value: &Value| value.as_str().map(|text| text.chars().take(253).collect::<String>());
    let kind = text(&manifest["kind"]).filter(|kind| KINDS.contains(&kind.as_str()));
    let name = text(&manifest["metadata"]["name"]).unwrap_or_else(|| "(no name)".to_owned());
    let namespace = text(&manifest["metadata"]["namespace"]).unwrap_or_default();
    ObjectId { kind: kind.unwrap_or_else(|| "manifest".to_owned()), namespace, name }.to_string()
}
