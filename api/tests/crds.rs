//! The generated definitions are those in `crds/`. Accept a change with `UPDATE=1 cargo test -p plimsoll-api crds`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::Value;
use std::path::Path;

fn yaml(value: &impl serde::Serialize) -> String {
    // Through a JSON value: keys sorted, absent fields absent.
    serde_saphyr::to_string(&serde_json::to_value(value).unwrap()).unwrap()
}

#[test]
fn the_crds_in_the_repository_are_those_of_the_types() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    for crd in plimsoll_api::crds() {
        let name = crd.metadata.name.clone().unwrap();
        let path = directory.join(format!("{name}.yaml"));
        let text = format!(
            "# Generated from the types in api/. Accept a change: UPDATE=1 cargo test -p plimsoll-api crds\n{}",
            yaml(&crd)
        );
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == text,
            "crds/{name}.yaml differs from the types; run UPDATE=1 cargo test -p plimsoll-api crds"
        );
        let back: Value = serde_saphyr::from_str(&stored).unwrap();
        assert_eq!(back, serde_json::to_value(&crd).unwrap());
    }
}

/// Every schema that a value can reach, with its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &format!("{path}{{}}"), visit);
    }
}

#[test]
fn every_string_and_list_of_a_spec_is_bounded_and_no_integer_has_an_unknown_format() {
    for crd in plimsoll_api::crds() {
        let crd = serde_json::to_value(&crd).unwrap();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut seen = 0;
        walk(spec, "spec", &mut |path, schema| {
            seen += 1;
            let bounded = match schema["type"].as_str() {
                Some("string") => schema["maxLength"].is_u64() || schema["enum"].is_array(),
                Some("array") => schema["maxItems"].is_u64() && schema["x-kubernetes-list-type"].is_string(),
                _ => true,
            };
            assert!(bounded, "{path} is not bounded: {schema}");
            // What an API server adds to a list is a difference for ever to whoever compares it with the manifest.
            assert!(
                !path.contains("[]") || schema["default"].is_null(),
                "{path} has a default inside a list"
            );
            let format = schema["format"].as_str().unwrap_or("int64");
            assert!(["int32", "int64", "date-time"].contains(&format), "{path} has the format {format}");
            assert!(
                schema["description"].is_string() || path.ends_with(']') || path.ends_with('}'),
                "{path} is not described"
            );
        });
        assert!(seen > 10);
    }
}
