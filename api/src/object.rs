//! Objects of every kind that Plimsoll reads, and how each is named.

use crate::{AIBudget, ModelBackend, ModelRoute};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::ResourceExt;
use std::fmt;

/// An object of a kind that Plimsoll reads.
#[derive(Clone, PartialEq)]
pub enum Object {
    /// What may be spent.
    Budget(Box<AIBudget>),
    /// What answers under a name.
    Route(Box<ModelRoute>),
    /// What a model is and costs.
    Backend(Box<ModelBackend>),
    /// A namespace; only its labels matter.
    Namespace(Box<Namespace>),
    /// Holds a provider's key.
    Secret(Box<Secret>),
}

/// Kind, namespace and name: `AIBudget finance/all`, `Namespace finance`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// The kind.
    pub kind: String,
    /// The namespace; empty for a Namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Object {
    /// Which object this is.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        let (kind, namespace, name) = match self {
            Self::Budget(object) => ("AIBudget", object.namespace(), object.name_any()),
            Self::Route(object) => ("ModelRoute", object.namespace(), object.name_any()),
            Self::Backend(object) => ("ModelBackend", object.namespace(), object.name_any()),
            Self::Namespace(object) => ("Namespace", None, object.name_any()),
            Self::Secret(object) => ("Secret", object.namespace(), object.name_any()),
        };
        ObjectId { kind: kind.to_owned(), namespace: namespace.unwrap_or_default(), name }
    }
}

/// Only the name: a Secret's content is never printed.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.id(), f)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        match namespace.is_empty() {
            true => write!(f, "{kind} {name}"),
            false => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}
