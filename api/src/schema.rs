//! Schemas of bounded texts, amounts and lists, each with what to tell someone whose value does not fit.
//!
//! Rules in place of patterns: of a pattern an API server says only that it does not match, of a rule it
//! says the message that stands here. [`crate::validate`] says the same message offline. Every bound is
//! there for people and for the cost check of CEL, which takes the longest value for granted.

use kube::core::Rule;
use schemars::{Schema, SchemaGenerator, json_schema};

/// What a text must match in full, and what to do about one that does not.
struct Form {
    most: u32,
    pattern: &'static str,
    todo: &'static str,
}

const NAME: Form = Form {
    most: 63,
    pattern: "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    todo: "use lower case letters, digits and -, with a letter or digit at both ends",
};
const SELECTION: Form = Form {
    most: 256,
    pattern: r"^[^*\x00-\x1f\x7f]+\*?$",
    todo: "a * may only end it, after at least one character; leave the list out to match any",
};
const MODEL: Form = Form {
    most: 128,
    pattern: "^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$",
    todo: "use letters, digits and . _ : / @ + -, with a letter or digit first",
};
const TIME_ZONE: Form = Form {
    most: 64,
    pattern: "^[A-Za-z][A-Za-z0-9_+/-]*$",
    todo: "use an IANA time zone like Europe/Berlin",
};
const DURATION: Form =
    Form { most: 10, pattern: "^[1-9][0-9]{0,6}(ms|s|m)$", todo: "write a duration like 120s, 500ms or 2m" };
const LINE: Form = Form { most: 200, pattern: r"^[^\x00-\x1f\x7f]+$", todo: "write it on one line" };
const BASE_URL: Form = Form {
    most: 512,
    pattern: r"^https?://[^\x00-\x20\x7f/?#@]+(/[^\x00-\x20\x7f?#]*)?$",
    todo: "write it like https://api.openai.com/v1, without user, query or fragment",
};
const SECRET_NAME: Form = Form {
    most: 253,
    pattern: "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    todo: "use lower case letters, digits, - and ., with a letter or digit at both ends",
};
const SECRET_KEY: Form =
    Form { most: 253, pattern: "^[-._a-zA-Z0-9]+$", todo: "use letters, digits, -, . and _" };
const LABEL_KEY: Form = Form {
    most: 317,
    pattern: "^[a-zA-Z0-9]([-a-zA-Z0-9./_]*[a-zA-Z0-9])?$",
    todo: "write a label like team or example.com/team",
};
const LABEL_VALUE: Form = Form {
    most: 63,
    pattern: "^([a-zA-Z0-9]([-a-zA-Z0-9._]*[a-zA-Z0-9])?)?$",
    todo: "use letters, digits, -, . and _, with a letter or digit at both ends",
};

impl Form {
    fn schema(&self) -> Schema {
        let Self { most, pattern, todo } = self;
        json_schema!({
            "type": "string",
            "maxLength": most,
            "x-kubernetes-validations": [{"rule": format!("self.matches(r'{pattern}')"), "message": todo}],
        })
    }
}

/// The pattern of a rule that [`Form::schema`] makes; `None` for every other rule.
pub(crate) fn pattern(rule: &str) -> Option<&str> {
    rule.strip_prefix("self.matches(r'")?.strip_suffix("')")
}

/// Names of our objects: DNS labels, as names elsewhere refer to them.
pub(crate) fn object_name() -> Rule {
    Rule::new("self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')")
        .message("metadata.name: use at most 63 lower case letters, digits and -")
}

/// A DNS label.
pub(crate) fn name(_: &mut SchemaGenerator) -> Schema {
    NAME.schema()
}

/// A Secret's name.
pub(crate) fn secret_name(_: &mut SchemaGenerator) -> Schema {
    SECRET_NAME.schema()
}

/// A key in a Secret.
pub(crate) fn secret_key(_: &mut SchemaGenerator) -> Schema {
    SECRET_KEY.schema()
}

/// A model's name.
pub(crate) fn model(_: &mut SchemaGenerator) -> Schema {
    MODEL.schema()
}

/// A time zone's name; whether it exists is known in `plan`.
pub(crate) fn time_zone(_: &mut SchemaGenerator) -> Schema {
    let mut schema = TIME_ZONE.schema();
    schema.insert("default".into(), "UTC".into());
    schema
}

/// `120s`.
pub(crate) fn duration(_: &mut SchemaGenerator) -> Schema {
    DURATION.schema()
}

/// A line of text for people.
pub(crate) fn line(_: &mut SchemaGenerator) -> Schema {
    LINE.schema()
}

/// Where an API begins.
pub(crate) fn base_url(_: &mut SchemaGenerator) -> Schema {
    BASE_URL.schema()
}

/// A label's key.
pub(crate) fn label_key(_: &mut SchemaGenerator) -> Schema {
    LABEL_KEY.schema()
}

/// A set of values to match.
pub(crate) fn selection(_: &mut SchemaGenerator) -> Schema {
    set(&SELECTION)
}

/// A set of label values.
pub(crate) fn label_values(_: &mut SchemaGenerator) -> Schema {
    set(&LABEL_VALUE)
}

fn set(of: &Form) -> Schema {
    json_schema!({
        "type": "array",
        "items": of.schema(),
        "minItems": 1,
        "maxItems": 64,
        "x-kubernetes-list-type": "set",
    })
}

/// Labels and their values.
pub(crate) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": LABEL_VALUE.schema(),
        "minProperties": 1,
        "maxProperties": 64,
    })
}

// Before Kubernetes 1.34 the cost check does not see that the text of an amount is short, and takes 3 MB for
// granted. Hence `type(self) in [int]` (`==` would cost a reading of the text), a regex of twelve characters
// at most for eight limits, and none for 256 models with three prices each, but a conversion, which costs 1.

/// A limit's amount.
pub(crate) fn amount(_: &mut SchemaGenerator) -> Schema {
    decimal(
        r"type(self) in [int] || self.matches(r'^\d+\.?\d*$')",
        r#"write an amount of 0 or more, like 500 or "12.50""#,
    )
}

/// A share in percent.
pub(crate) fn percent(_: &mut SchemaGenerator) -> Schema {
    decimal(
        "type(self) in [int] ? self <= 100 : self >= '0' && self < ':' && double(self) <= 100.0",
        r#"write a share from 0 to 100, like 15 or "12.5""#,
    )
}

/// US dollars. What the rule lets through that is none, like "1e3", `plan` refuses.
pub(crate) fn usd(_: &mut SchemaGenerator) -> Schema {
    decimal(
        "type(self) in [int] || self >= '0' && self < ':' && double(self) >= 0.0",
        r#"write US dollars of 0 or more, like 2 or "1.25""#,
    )
}

/// 18 digits, a point and nine decimals are 28 characters: a nano-dollar is the smallest amount.
fn decimal(rule: &str, todo: &str) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maxLength": 28,
        "x-kubernetes-validations": [{"rule": rule, "message": todo}],
    })
}
