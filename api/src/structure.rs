//! A value against a structural schema: unknown fields, types, bounds, rules on texts, defaults.
//!
//! It does offline what an API server does with the same schema, for the keywords that our schemas
//! use and no others: nulls are pruned, defaults filled in, then everything that is wrong is named,
//! not only the first thing. The rules on texts and amounts are checked here, because CEL would compile
//! each regex anew for each value; the rules on objects come after it (see `validate`).

use crate::decimal::is_decimal;
use crate::schema::pattern;
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock, PoisonError};

/// One thing that is wrong: the field and the sentence that begins with it.
pub(crate) type Fault = (String, String);

/// Names what is wrong in `value`, which gets the schema's defaults.
pub(crate) fn check(schema: &Value, value: &mut Value, path: &str, faults: &mut Vec<Fault>) {
    let before = faults.len();
    let is_amount = schema["x-kubernetes-int-or-string"] == true;
    if let (true, Some(integer)) = (is_amount || schema["type"] == "integer", integer(value)) {
        *value = integer;
    }
    if is_amount {
        int_or_string(schema, value, path, faults);
    } else {
        match schema["type"].as_str() {
            Some("object") => object(schema, value, path, faults),
            Some("array") => array(schema, value, path, faults),
            Some("string") if !value.is_string() => wrong_type(value, "a string", path, faults),
            Some("boolean") if !value.is_boolean() => wrong_type(value, "true or false", path, faults),
            Some("integer") if value.as_i64().is_none() => wrong_type(value, "an integer", path, faults),
            _ => {}
        }
    }
    if faults.len() == before {
        bounds(schema, value, path, faults);
    }
}

fn fault(path: &str, rest: &str, faults: &mut Vec<Fault>) {
    faults.push((path.to_owned(), format!("{path} {rest}")));
}

fn wrong_type(value: &Value, wanted: &str, path: &str, faults: &mut Vec<Fault>) {
    let is = match value {
        Value::Null => "empty".to_owned(),
        // YAML 1.1 reads y, n, on and off so.
        Value::Bool(_) if wanted == "a string" => {
            return fault(path, &format!("is {value}, not a string; put it in quotes"), faults);
        }
        Value::Bool(_) => "true or false".to_owned(),
        Value::Number(_) if wanted == "a string" => {
            return fault(path, &format!("{value} is a number, not a string; put it in quotes"), faults);
        }
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {}", quoted(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    fault(path, &format!("is {is}; it should be {wanted}"), faults);
}

/// `5.0` as the integer that kubectl makes of it.
fn integer(value: &Value) -> Option<Value> {
    let number = value.as_number().filter(|number| number.is_f64())?.as_f64()?;
    // As text: it has no point where nothing stands behind it, and no cast can go wrong.
    format!("{number}").parse::<i64>().ok().map(Value::from)
}

fn int_or_string(schema: &Value, value: &Value, path: &str, faults: &mut Vec<Fault>) {
    match value {
        Value::String(text) if is_decimal(text) => {}
        // Too long is what `bounds` says.
        Value::String(text) if schema["maxLength"].as_u64().is_some_and(|most| text.len() as u64 > most) => {}
        Value::String(text) => {
            let rules = schema["x-kubernetes-validations"].as_array();
            let todo = rules.and_then(|rules| rules.first()?["message"].as_str()).unwrap_or_default();
            fault(path, &format!("{} does not fit; {todo}", quoted(text)), faults);
        }
        Value::Number(number) if number.is_i64() => {}
        Value::Number(number) => {
            let rest = format!("{number} is not an integer; write a decimal number in quotes, \"{number}\"");
            fault(path, &rest, faults);
        }
        _ => wrong_type(value, "an integer, or a decimal number in quotes", path, faults),
    }
}

fn object(schema: &Value, value: &mut Value, path: &str, faults: &mut Vec<Fault>) {
    let Value::Object(fields) = value else { return wrong_type(value, "an object", path, faults) };
    if let (Some(each), None) = (schema.get("additionalProperties"), schema.get("properties")) {
        for (key, value) in fields {
            check(each, value, &format!("{path}[{key}]"), faults);
        }
        return;
    }
    let none = Map::new();
    let known = schema["properties"].as_object().unwrap_or(&none);
    fields.retain(|key, value| !(value.is_null() && known.contains_key(key)));
    for (key, schema) in known {
        if let (Some(default), false) = (schema.get("default"), fields.contains_key(key)) {
            fields.insert(key.clone(), default.clone());
        }
    }
    for key in fields.keys().filter(|key| !known.contains_key(*key)) {
        let field = join(path, key);
        let names = known.keys().map(String::as_str);
        fault(&field, &format!("is not a field; {}", suggest(key, names, "the fields here are")), faults);
    }
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(key) {
            fault(&join(path, key), "is missing; add it", faults);
        }
    }
    for (key, schema) in known {
        if let Some(value) = fields.get_mut(key) {
            check(schema, value, &join(path, key), faults);
        }
    }
}

fn array(schema: &Value, value: &mut Value, path: &str, faults: &mut Vec<Fault>) {
    let Value::Array(items) = value else { return wrong_type(value, "a list", path, faults) };
    for (index, item) in items.iter_mut().enumerate() {
        check(&schema["items"], item, &format!("{path}[{index}]"), faults);
    }
    let keys: Vec<&str> = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => vec![],
        Some("map") => schema["x-kubernetes-list-map-keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
        _ => return,
    };
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let (field, id) = match keys.first() {
            Some(key) => (format!("{path}[{index}].{key}"), &item[*key]),
            None => (format!("{path}[{index}]"), item),
        };
        if !seen.insert(id.to_string()) {
            fault(&field, &format!("{id} stands there twice; give each entry its own"), faults);
        }
    }
}

fn bounds(schema: &Value, value: &Value, path: &str, faults: &mut Vec<Fault>) {
    let bound = |keyword: &str| schema[keyword].as_u64().and_then(|n| usize::try_from(n).ok());
    match value {
        Value::String(text) => string_bounds(schema, text, path, faults),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let (low, high) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
            if low.is_some_and(|low| number < low) || high.is_some_and(|high| number > high) {
                let rest = match (low, high) {
                    (Some(low), Some(high)) => format!("{number} is out of range; use {low} to {high}"),
                    (Some(low), None) => format!("{number} is too small; use {low} or more"),
                    (None, high) => {
                        format!("{number} is too large; use at most {}", high.unwrap_or_default())
                    }
                };
                fault(path, &rest, faults);
            }
        }
        Value::Array(items) => {
            if bound("minItems").is_some_and(|least| items.len() < least) {
                fault(
                    path,
                    "is empty; give at least one entry, or leave the field out if it is optional",
                    faults,
                );
            }
            if let Some(most) = bound("maxItems").filter(|most| items.len() > *most) {
                fault(path, &format!("has {} entries; at most {most} are allowed", items.len()), faults);
            }
        }
        Value::Object(fields) => {
            if bound("minProperties").is_some_and(|least| fields.len() < least) {
                fault(path, "is empty; give at least one entry, or leave the field out", faults);
            }
            if let Some(most) = bound("maxProperties").filter(|most| fields.len() > *most) {
                fault(path, &format!("has {} entries; at most {most} are allowed", fields.len()), faults);
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn string_bounds(schema: &Value, text: &str, path: &str, faults: &mut Vec<Fault>) {
    if let Some(allowed) = schema["enum"].as_array() {
        let names: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        if !names.contains(&text) {
            let rest = format!(
                "{} is not allowed; {}",
                quoted(text),
                suggest(text, names.into_iter(), "use one of")
            );
            fault(path, &rest, faults);
        }
        return;
    }
    let length = text.chars().count();
    let most = schema["maxLength"].as_u64().and_then(|most| usize::try_from(most).ok());
    if let Some(most) = most.filter(|most| length > *most) {
        return fault(path, &format!("has {length} characters; at most {most} are allowed"), faults);
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let pattern = rule["rule"].as_str().and_then(pattern);
        if pattern.is_some_and(|pattern| !matches(pattern, text)) {
            let what = match text {
                "" => "is empty".to_owned(),
                // A URL with a user in it has a password too, and this goes into logs.
                url if url.contains('@') && url.contains("://") => "does not fit".to_owned(),
                text => format!("{} does not fit", quoted(text)),
            };
            fault(path, &format!("{what}; {}", rule["message"].as_str().unwrap_or_default()), faults);
        }
    }
}

/// Whether `text` matches; our schemas have a dozen patterns, so each is compiled once.
fn matches(pattern: &str, text: &str) -> bool {
    static COMPILED: OnceLock<Mutex<BTreeMap<String, Option<Regex>>>> = OnceLock::new();
    let mut compiled = COMPILED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let regex = compiled.entry(pattern.to_owned()).or_insert_with(|| Regex::new(pattern).ok());
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

/// `did you mean "limits"?`, else all that there are.
pub(crate) fn suggest<'a>(given: &str, names: impl Iterator<Item = &'a str>, all: &str) -> String {
    let names: Vec<&str> = names.collect();
    let lower = given.to_lowercase();
    let distance = |name: &str| strsim::damerau_levenshtein(&lower, &name.to_lowercase());
    match names.iter().map(|name| (distance(name), name)).min() {
        Some((distance, name)) if distance <= given.chars().count().max(3) / 3 => {
            format!("did you mean \"{name}\"?")
        }
        _ => format!("{all} {}", names.join(", ")),
    }
}

/// `text` in quotes, shortened: it may be anything.
pub(crate) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(64).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn join(path: &str, key: &str) -> String {
    let key: String = key.chars().take(64).collect();
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
