//! Schemas of bounded strings and lists, and what to tell someone whose text does not fit.
//!
//! A pattern in a CRD says only that it does not match; [`hint`] says what would.

use schemars::{Schema, SchemaGenerator, json_schema};

const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const SELECTION: &str = r"^[^*\x00-\x1f\x7f]+\*?$";
const MODEL: &str = "^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$";
const TIME_ZONE: &str = "^[A-Za-z][A-Za-z0-9_+/-]*$";
const DURATION: &str = "^[1-9][0-9]{0,6}(ms|s|m)$";
const LINE: &str = r"^[^\x00-\x1f\x7f]+$";
const BASE_URL: &str = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$";
const KEY: &str = "^[-._a-zA-Z0-9]+$";
const LABEL: &str = "^([-a-zA-Z0-9./_]*[a-zA-Z0-9])?$";

/// What a text that fails `pattern` should look like.
pub(crate) fn hint(pattern: &str) -> &'static str {
    match pattern {
        crate::decimal::PATTERN => {
            "write an amount of 0 or more like 500 or \"12.50\", with at most nine decimals"
        }
        NAME => "use lower case letters, digits and -",
        SELECTION => "a * may only end it, after at least one character; leave the list out to match any",
        MODEL => "use letters, digits and . _ : / @ + -",
        TIME_ZONE => "use an IANA time zone like Europe/Berlin",
        DURATION => "write a duration like 120s, 500ms or 2m",
        LINE => "write it on one line",
        BASE_URL => "write it like https://api.openai.com/v1, without user, query or fragment",
        KEY => "use letters, digits and - . _",
        LABEL => "use letters, digits and - . _ /",
        _ => "see the schema's pattern",
    }
}

fn string(max: u32, pattern: &str) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": max, "pattern": pattern})
}

/// A DNS label.
pub(crate) fn name(_: &mut SchemaGenerator) -> Schema {
    string(63, NAME)
}

/// A DNS label; absent where nothing is said.
pub(crate) fn key(_: &mut SchemaGenerator) -> Schema {
    string(253, KEY)
}

/// A model's name.
pub(crate) fn model(_: &mut SchemaGenerator) -> Schema {
    string(128, MODEL)
}

/// A time zone's name; whether it exists is known in `plan`.
pub(crate) fn time_zone(_: &mut SchemaGenerator) -> Schema {
    let mut schema = string(64, TIME_ZONE);
    schema.insert("default".into(), "UTC".into());
    schema
}

/// `120s`.
pub(crate) fn duration(_: &mut SchemaGenerator) -> Schema {
    string(10, DURATION)
}

/// A line of text for people.
pub(crate) fn line(_: &mut SchemaGenerator) -> Schema {
    string(200, LINE)
}

/// Where an API begins.
pub(crate) fn base_url(_: &mut SchemaGenerator) -> Schema {
    string(512, BASE_URL)
}

/// A label's key or value.
pub(crate) fn label(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 316, "pattern": LABEL})
}

/// A set of values to match.
pub(crate) fn selection(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": string(256, SELECTION),
        "minItems": 1,
        "maxItems": 64,
        "x-kubernetes-list-type": "set",
    })
}

/// A set of label values.
pub(crate) fn label_values(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": label(generator),
        "minItems": 1,
        "maxItems": 64,
        "x-kubernetes-list-type": "set",
    })
}

/// Labels and their values.
pub(crate) fn labels(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": label(generator),
        "minProperties": 1,
        "maxProperties": 64,
    })
}
