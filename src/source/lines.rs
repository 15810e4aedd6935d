//! On which line each field of a YAML document stands: what is wrong is told by field, and mended by line.
//!
//! Made only when something is wrong, by reading the document a second time: lines would cost every
//! good document time and memory.

use super::manifest::{Document, parse};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

/// The lines of one document.
#[derive(Debug)]
pub struct Lines {
    /// `None` for a document that can't be read.
    root: Option<Spanned<Node>>,
    /// The line on which the document begins in its file, from 1.
    begin: usize,
    /// What to say where nothing else is known.
    first: usize,
}

#[derive(Debug)]
enum Node {
    Scalar(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<Node>, Spanned<Node>)>),
}

impl Lines {
    /// Of `document`, which is YAML or JSON.
    #[must_use]
    pub fn of(document: &Document<'_>) -> Self {
        Self { root: parse(document.text).ok(), begin: document.line, first: document.first_line() }
    }

    /// The line in the file of `field` (`spec.limits[0].amount`), or of the nearest thing around it that is
    /// there; within `item` of a List, where there is one.
    #[must_use]
    pub fn find(&self, item: Option<usize>, field: &str) -> usize {
        let Some(root) = &self.root else { return self.first };
        let mut line = begin(root);
        let mut node = &root.value;
        let mut down = |step: &str| match child(node, step) {
            Some((at, below)) => {
                (line, node) = (at, below);
                true
            }
            None => false,
        };
        if let Some(item) = item {
            let _found = down("items") && down(&item.to_string());
        }
        let _all = steps(field).all(down);
        self.begin + line - 1
    }
}

fn begin(node: &Spanned<Node>) -> usize {
    usize::try_from(node.referenced.line()).unwrap_or(1).max(1)
}

/// The line and the value of what `step` names in `node`: a field stands where its name does.
fn child<'a>(node: &'a Node, step: &str) -> Option<(usize, &'a Node)> {
    match node {
        Node::Scalar(_) => None,
        Node::List(items) => {
            let item = items.get(step.parse::<usize>().ok()?)?;
            Some((begin(item), &item.value))
        }
        Node::Map(fields) => {
            let named = |key: &Node| matches!(key, Node::Scalar(name) if name == step);
            let (key, value) = fields.iter().find(|(key, _)| named(&key.value))?;
            Some((begin(key), &value.value))
        }
    }
}

/// `spec`, `limits`, `0`, `amount`; what stands in brackets may have dots.
fn steps(field: &str) -> impl Iterator<Item = &str> {
    let mut rest = field;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        let (step, after) = match rest.strip_prefix('[') {
            Some(bracket) => bracket.split_once(']')?,
            None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        rest = after;
        (!step.is_empty()).then_some(step)
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(String::new()))
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(String::new()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = access.next_entry()? {
                    fields.push(field);
                }
                Ok(Node::Map(fields))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines {
        Lines::of(&Document { line: 1, text })
    }

    #[test]
    fn a_field_is_found_in_block_and_flow_style_and_in_json() {
        let block = "# a comment\nspec:\n  limits:\n  - name: month\n    amount: 5\n  - name: day\n";
        let read = lines(block);
        let find = |field| read.find(None, field);
        assert_eq!(find("spec"), 2);
        assert_eq!(find("spec.limits"), 3);
        assert_eq!(find("spec.limits[0].amount"), 5);
        assert_eq!(find("spec.limits[1]"), 6);
        assert_eq!(find("spec.limits[1].amount"), 6, "the limit that lacks it");
        assert_eq!(find("status"), 2, "the object that lacks it");

        let flow = "metadata: {name: all,\n  namespace: finance}\nspec: {limits: [\n  {name: month},\n  {name: day}]}";
        let read = lines(flow);
        assert_eq!(read.find(None, "metadata.namespace"), 2);
        assert_eq!(read.find(None, "spec.limits[1].name"), 5);

        let json = "{\n \"spec\": {\n  \"labels\": {\n   \"a.b/c\": 1\n  }\n }\n}";
        assert_eq!(lines(json).find(None, "spec.labels[a.b/c]"), 4);
    }

    #[test]
    fn a_field_is_found_in_an_item_of_a_list() {
        let read = lines("kind: List\nitems:\n- kind: A\n- kind: B\n  spec:\n    x: 1\n");
        assert_eq!(read.find(Some(1), "spec.x"), 6);
        assert_eq!(read.find(Some(1), ""), 4);
        assert_eq!(lines("# torn\n[").find(None, "spec"), 2);
    }
}
