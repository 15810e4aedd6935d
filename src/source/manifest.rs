//! A manifest file's text as objects: documents, Lists, and where each begins. Pure.
//!
//! Each document stands alone: one that can't be read says so, by line, and takes none of its
//! neighbours with it.

use super::lines::Lines;
use plimsoll_api::{Object, ObjectId, Problem, validate};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::cell::OnceCell;
use std::hash::{DefaultHasher, Hash, Hasher};

/// One object of a file, or why there is none.
#[derive(Debug)]
pub struct Entry {
    /// The line on which its document begins, from 1.
    pub line: usize,
    /// Which item of a List it is, from 0; `None` for a document of its own.
    pub item: Option<usize>,
    /// Which object it is, where that can be told although it is wrong.
    pub id: Option<ObjectId>,
    /// Tells one content from another.
    pub content: u64,
    /// The object, or everything that is wrong with it.
    pub object: Result<Object, Vec<Wrong>>,
}

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// On which line, from 1.
    pub line: usize,
    /// The field, `spec.limits[0].amount`; empty where it is the whole object.
    pub field: String,
    /// What, and what to do.
    pub message: String,
}

/// Every object in `text`, in order.
#[must_use]
pub fn read(text: &str) -> Vec<Entry> {
    documents(text).iter().flat_map(Document::read).collect()
}

/// What is taken for granted of a document.
#[derive(Clone, Copy, Debug, Default)]
pub struct Custom<'a> {
    /// The namespace of objects that name none; absent: that is an error.
    pub namespace: Option<&'a str>,
    /// Whether a document without apiVersion and kind is no manifest, rather than a wrong one.
    pub strays: bool,
}

/// What a document holds.
#[derive(Debug, Default)]
pub struct Reading {
    /// Objects of kinds that Plimsoll reads.
    pub entries: Vec<Entry>,
    /// How many others there are: other groups' kinds are nobody's error here.
    pub others: usize,
}

/// A part of a file that stands alone, not read yet.
#[derive(Clone, Copy, Debug)]
pub struct Document<'a> {
    /// The line on which it begins, from 1.
    pub line: usize,
    /// Its text.
    pub text: &'a str,
}

impl Document<'_> {
    /// Its objects of kinds that Plimsoll reads: at most one, or those of a List.
    #[must_use]
    pub fn read(&self) -> Vec<Entry> {
        self.read_as(Custom::default()).entries
    }

    /// As [`Document::read`], with what is taken for granted, and a count of other objects.
    #[must_use]
    pub fn read_as(&self, custom: Custom<'_>) -> Reading {
        objects(self, custom)
    }

    /// The line to name: that of the first thing which is not a comment.
    #[must_use]
    pub fn first_line(&self) -> usize {
        let blank = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
        self.line + self.text.lines().take_while(blank).count()
    }
}

/// Cuts at the lines that YAML calls document markers; no scalar can contain one.
#[must_use]
pub fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut begin = (1, 0);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.starts_with("---") || line.starts_with("...");
        if marker && line[3..].chars().next().is_none_or(char::is_whitespace) {
            documents.push(Document { line: begin.0, text: &text[begin.1..offset] });
            // What stands behind `---` on its own line belongs to the document.
            begin = if line[3..].trim().is_empty() {
                (index + 2, offset + line.len())
            } else {
                (index + 1, offset + 3)
            };
        }
        offset += line.len();
    }
    documents.push(Document { line: begin.0, text: &text[begin.1..] });
    let empty = |document: &str| {
        document.lines().all(|line| {
            let line = line.trim_start();
            line.is_empty() || line.starts_with('#') || line.starts_with('%')
        })
    };
    documents.retain(|document| !empty(document.text));
    documents
}

fn objects(document: &Document<'_>, custom: Custom<'_>) -> Reading {
    let Document { line, text } = *document;
    let first = document.first_line();
    let wrong = |line: usize, message: String| Reading {
        entries: vec![Entry {
            line: first,
            item: None,
            id: guess(text),
            content: 0,
            object: Err(vec![Wrong { line, field: String::new(), message }]),
        }],
        others: 0,
    };
    let mut value: Value = match parse(text) {
        Ok(value) => value,
        Err(error) => {
            let at = error.location().map_or(first, |location| {
                line + usize::try_from(location.line()).unwrap_or(1).saturating_sub(1)
            });
            // The parser's words may hold a value, and a Secret's values are never printed.
            let message = if text.contains("Secret") {
                "this is not YAML; mind indentation and quotes".to_owned()
            } else {
                format!("this is not YAML: {}", first_line(&error.to_string()))
            };
            return wrong(at, message);
        }
    };
    let is_list = value["kind"].as_str().is_some_and(|kind| kind == "List" || kind.ends_with("List"));
    let (items, listed) = match value.as_object_mut() {
        Some(fields) if is_list => match fields.remove("items") {
            Some(Value::Array(items)) => (items, true),
            None | Some(Value::Null) => (vec![], true),
            Some(_) => return wrong(first, "items is not a list; write one object an item".to_owned()),
        },
        _ => (vec![value], false),
    };
    let mut reading = Reading::default();
    let lines = OnceCell::new();
    for (index, mut item) in items.into_iter().enumerate() {
        if is_other(&item) || (custom.strays && item["apiVersion"].is_null() && item["kind"].is_null()) {
            reading.others += 1;
            continue;
        }
        if let Some(namespace) = custom.namespace {
            fill_in(&mut item, namespace);
        }
        let index = listed.then_some(index);
        let line = |field: &str| lines.get_or_init(|| Lines::of(document)).find(index, field);
        reading.entries.push(entry(first, index, &item, line));
    }
    reading
}

/// Whether it is of somebody else's group. A kind of ours with another apiVersion is a mistake, and so is
/// another kind with ours.
fn is_other(value: &Value) -> bool {
    let text = |key: &str| value[key].as_str().filter(|text| !text.is_empty());
    let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else { return false };
    let group = version.split_once('/').map_or("", |(group, _)| group);
    group != plimsoll_api::GROUP && !plimsoll_api::KINDS.contains(&kind)
}

fn fill_in(item: &mut Value, namespace: &str) {
    if item["kind"] != "Namespace"
        && let Some(metadata) = item["metadata"].as_object_mut()
    {
        metadata.entry("namespace").or_insert_with(|| namespace.into());
    }
}

fn entry(line: usize, item: Option<usize>, value: &Value, line_of: impl Fn(&str) -> usize) -> Entry {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let content = hasher.finish();
    match validate(value) {
        Ok(object) => Entry { line, item, id: Some(object.id()), content, object: Ok(object) },
        Err(problems) => {
            let wrong =
                |Problem { field, message, .. }: Problem| Wrong { line: line_of(&field), field, message };
            let object = Err(problems.into_iter().map(wrong).collect());
            Entry { line, item, id: identify(value), content, object }
        }
    }
}

fn identify(value: &Value) -> Option<ObjectId> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(ObjectId {
        kind: text(&value["kind"])?,
        namespace: text(&value["metadata"]["namespace"]).unwrap_or_default(),
        name: text(&value["metadata"]["name"])?,
    })
}

/// Which object a document was meant to be that is no YAML: from lines that look like ours.
fn guess(document: &str) -> Option<ObjectId> {
    let field = |key: &str| {
        document.lines().find_map(|line| {
            let value =
                line.trim_start().strip_prefix(key)?.strip_prefix(':')?.trim().trim_matches(['"', '\'']);
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            (!value.is_empty() && value.len() <= 253 && value.chars().all(plain)).then(|| value.to_owned())
        })
    };
    let inline = |key: &str| {
        let line = document.lines().find(|line| line.starts_with("metadata:"))?;
        let value =
            line.split([',', '{', '}']).find_map(|part| part.trim().strip_prefix(key)?.strip_prefix(':'))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
    };
    Some(ObjectId {
        kind: field("kind")?,
        namespace: inline("namespace").or_else(|| field("namespace")).unwrap_or_default(),
        name: inline("name").or_else(|| field("name"))?,
    })
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

pub(super) fn parse<T: DeserializeOwned>(document: &str) -> Result<T, serde_saphyr::Error> {
    // As kubectl has it, `yes` and `on` are strings. No snippet: it would print neighbouring lines,
    // which may be a key. A List of 10,000 objects passes; what makes a bomb stays bounded.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: 8_000_000, max_events: 16_000_000 },
    };
    serde_saphyr::with_deserializer_from_str_with_options(document, options, |deserializer| {
        T::deserialize(deserializer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: &str = "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\n\
        metadata: {name: all, namespace: finance}\nspec: {limits: [{name: month, amount: 500}]}\n";

    fn wrong(entry: &Entry) -> &Wrong {
        &entry.object.as_ref().unwrap_err()[0]
    }

    #[test]
    fn documents_are_told_apart_and_know_their_line() {
        let text = format!("# a comment\n---\n{BUDGET}--- # again\n\n{BUDGET}...\n---\n# nothing\n");
        let entries = read(&text);
        assert_eq!(entries.iter().map(|entry| entry.line).collect::<Vec<_>>(), [3, 9]);
        assert!(entries.iter().all(|entry| entry.object.is_ok()), "{entries:?}");
    }

    #[test]
    fn a_broken_document_names_line_and_object_and_spares_its_neighbours() {
        let broken = "kind: AIBudget\nmetadata: {name: torn, namespace: finance}\nspec: {limits: [\n";
        let entries = read(&format!("{BUDGET}---\n{broken}---\n{BUDGET}"));
        assert!(entries[0].object.is_ok() && entries[2].object.is_ok());
        assert_eq!(entries[1].id.as_ref().unwrap().to_string(), "AIBudget finance/torn");
        assert_eq!(entries[1].line, 6);
        assert!((6..=9).contains(&wrong(&entries[1]).line), "{entries:?}");
    }

    #[test]
    fn a_list_is_its_items_and_one_bad_item_spares_the_others() {
        let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "finance"}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "Finance!"}}]}"#;
        let entries = read(text);
        assert_eq!(entries.len(), 2);
        assert!(entries[0].object.is_ok());
        assert!(wrong(&entries[1]).message.contains("metadata.name"));
    }

    #[test]
    fn what_is_wrong_is_told_by_the_line_of_its_field() {
        let bad = BUDGET.replace("amount: 500", "\n  amount: 12.5");
        let entries = read(&format!("{BUDGET}---\n# next\n{bad}"));
        assert_eq!((entries[1].line, wrong(&entries[1]).line), (7, 11), "{entries:?}");
        let list =
            "kind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: Finance\n";
        assert_eq!(wrong(&read(list)[0]).line, 6);
    }

    #[test]
    fn other_groups_kinds_are_left_out_and_misspelt_ones_are_not() {
        let text = |version: &str, kind: &str| {
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a, namespace: b}}\n")
        };
        for (version, kind) in [("apps/v1", "Deployment"), ("v1", "ConfigMap"), ("plimsoll.example/v1", "X")]
        {
            assert!(read(&text(version, kind)).is_empty(), "{version} {kind}");
        }
        for (version, kind) in [
            ("plimsoll.dev/v1alpha1", "AIBudgets"),
            ("plimsol.dev/v1alpha1", "AIBudget"),
            ("''", "Deployment"),
        ] {
            assert!(read(&text(version, kind))[0].object.is_err(), "{version} {kind}");
        }
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        let entries = read(&format!("{BUDGET}kind: AIBudget\n"));
        assert!(entries[0].object.is_err());
    }

    #[test]
    fn a_secret_that_is_no_yaml_is_not_printed() {
        let entries =
            read("kind: Secret\nmetadata: {name: openai, namespace: p}\nstringData: {k: \"sk-very-secret\n");
        assert!(!format!("{entries:?}").contains("sk-very-secret"));
        let entries = read(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: openai, namespace: p}\ndata: sk-very-secret\n",
        );
        assert!(entries[0].object.is_err());
        assert!(!format!("{entries:?}").contains("sk-very-secret"));
    }

    #[test]
    fn yes_is_a_string_as_kubectl_has_it_and_amounts_stay_integers() {
        let value: Value = parse("a: yes\nb: 5000\nc: true\nd: 1.5").unwrap();
        assert_eq!(value, serde_json::json!({"a": "yes", "b": 5000, "c": true, "d": 1.5}));
    }
}
