//! The world: every object that a source has told of, as it was written.
//!
//! Keyed by name and nothing else. Secrets' values are carried for the gateways and never printed.

use crate::settings::Settings;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use plimsoll_api::{AIBudget, ModelBackend, ModelRoute, Object, ObjectId};
use plimsoll_core::ids::ObjectName;
use std::collections::BTreeMap;
use std::fmt;

/// Every object there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The installation's settings.
    pub settings: Settings,
    /// Budgets. Boxed, here and below: a map's nodes are half empty, and an object has a kilobyte.
    pub budgets: BTreeMap<ObjectName, Box<AIBudget>>,
    /// Routes.
    pub routes: BTreeMap<ObjectName, Box<ModelRoute>>,
    /// Backends.
    pub backends: BTreeMap<ObjectName, Box<ModelBackend>>,
    /// The labels of each namespace, `kubernetes.io/metadata.name` included.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// The keys of each Secret, with their values.
    pub secrets: BTreeMap<ObjectName, BTreeMap<String, SecretText>>,
    /// Namespaces whose Secrets can't be read although they should be, and why.
    pub secrets_denied: BTreeMap<String, String>,
}

/// A value of a Secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Vec<u8>);

impl SecretText {
    /// Hides `value`.
    #[must_use]
    pub fn new(value: Vec<u8>) -> Self {
        Self(value)
    }

    /// The value, for the gateways alone.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether anything but blanks is in it.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.0.trim_ascii().is_empty()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl World {
    /// A world without objects.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// `object` is there, new or changed.
    pub(crate) fn put(&mut self, object: Object) {
        let id = object.id();
        let name = ObjectName::new(id.namespace, id.name);
        match object {
            Object::Budget(budget) => drop(self.budgets.insert(name, budget)),
            Object::Route(route) => drop(self.routes.insert(name, route)),
            Object::Backend(backend) => drop(self.backends.insert(name, backend)),
            Object::Namespace(namespace) => drop(self.namespaces.insert(name.name, labels(*namespace))),
            Object::Secret(secret) => drop(self.secrets.insert(name, values(*secret))),
        }
    }

    /// The object `id` is gone.
    pub(crate) fn remove(&mut self, id: &ObjectId) {
        let name = ObjectName::new(&*id.namespace, &*id.name);
        match id.kind.as_str() {
            "AIBudget" => drop(self.budgets.remove(&name)),
            "ModelRoute" => drop(self.routes.remove(&name)),
            "ModelBackend" => drop(self.backends.remove(&name)),
            "Namespace" => drop(self.namespaces.remove(&id.name)),
            "Secret" => drop(self.secrets.remove(&name)),
            _ => {}
        }
    }
}

/// What every namespace of a cluster has, so that selectors by name work on files too.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn labels(namespace: Namespace) -> BTreeMap<String, String> {
    let mut labels = namespace.metadata.labels.unwrap_or_default();
    labels.insert(NAME_LABEL.to_owned(), namespace.metadata.name.unwrap_or_default());
    labels
}

fn values(secret: Secret) -> BTreeMap<String, SecretText> {
    let data = secret.data.into_iter().flatten().map(|(key, value)| (key, SecretText(value.0)));
    let text =
        secret.string_data.into_iter().flatten().map(|(key, value)| (key, SecretText(value.into_bytes())));
    data.chain(text).collect()
}
