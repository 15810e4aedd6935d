//! A manifest file's text as objects: documents, Lists, and where each begins. Pure.
//!
//! Each document stands alone: one that can't be read says so, by line, and takes none of its
//! neighbours with it.

use plimsoll_api::{Object, ObjectId, validate};
use serde::Deserialize;
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};

/// One object of a file, or why there is none.
#[derive(Debug)]
pub struct Entry {
    /// The line on which its document begins, from 1.
    pub line: usize,
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
    /// What, and what to do.
    pub message: String,
}

/// Every object in `text`, in order.
#[must_use]
pub fn read(text: &str) -> Vec<Entry> {
    documents(text).iter().flat_map(Document::read).collect()
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
    /// Its objects: one, or those of a List.
    #[must_use]
    pub fn read(&self) -> Vec<Entry> {
        objects(self.line, self.first_line(), self.text)
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

fn objects(line: usize, first: usize, document: &str) -> Vec<Entry> {
    let wrong = |line: usize, message: String| Entry {
        line: first,
        id: guess(document),
        content: 0,
        object: Err(vec![Wrong { line, message }]),
    };
    let value = match parse(document) {
        Ok(value) => value,
        Err(error) => {
            let at = error.location().map_or(first, |location| {
                line + usize::try_from(location.line()).unwrap_or(1).saturating_sub(1)
            });
            // The parser's words may hold a value, and a Secret's values are never printed.
            let message = if document.contains("Secret") {
                "this is not YAML; mind indentation and quotes".to_owned()
            } else {
                format!("this is not YAML: {}", first_line(&error.to_string()))
            };
            return vec![wrong(at, message)];
        }
    };
    let is_list = value["kind"].as_str().is_some_and(|kind| kind == "List" || kind.ends_with("List"));
    match value {
        Value::Object(mut fields) if is_list => match fields.remove("items") {
            Some(Value::Array(items)) => items.iter().map(|item| entry(first, item)).collect(),
            None | Some(Value::Null) => vec![],
            Some(_) => vec![wrong(first, "items is not a list; write one object an item".to_owned())],
        },
        value => vec![entry(first, &value)],
    }
}

fn entry(line: usize, value: &Value) -> Entry {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let content = hasher.finish();
    match validate(value) {
        Ok(object) => Entry { line, id: Some(object.id()), content, object: Ok(object) },
        Err(problems) => Entry {
            line,
            id: identify(value),
            content,
            object: Err(problems
                .into_iter()
                .map(|problem| Wrong { line, message: problem.message })
                .collect()),
        },
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

fn parse(document: &str) -> Result<Value, serde_saphyr::Error> {
    // As kubectl has it, `yes` and `on` are strings. No snippet: it would print neighbouring lines,
    // which may be a key. A List of 10,000 objects passes; what makes a bomb stays bounded.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: 8_000_000, max_events: 16_000_000 },
    };
    serde_saphyr::with_deserializer_from_str_with_options(document, options, |deserializer| {
        Value::deserialize(deserializer)
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
        let value = parse("a: yes\nb: 5000\nc: true\nd: 1.5").unwrap();
        assert_eq!(value, serde_json::json!({"a": "yes", "b": 5000, "c": true, "d": 1.5}));
    }
}
