//! What every gateway should hold: resources by kind and name, each with a version.
//!
//! A version is a hash of the content, so that an operator that restarts sends nothing that a
//! gateway holds already. Versions of secrets are salted anew in each process: a version is seen in
//! logs and statuses, and must not tell anything about the key.

use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The kinds of resources that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CDS.
    Cluster,
    /// SDS.
    Secret,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Secret];

    /// Its type URL.
    #[must_use]
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The kind that `url` names, if it is served.
    #[must_use]
    pub fn of_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Secret => "secret",
        })
    }
}

/// Names one resource: `cluster finance/openai`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name in Envoy.
    pub name: String,
}

impl ResourceKey {
    /// A cluster's key.
    #[must_use]
    pub fn cluster(name: &str) -> Self {
        Self { kind: Kind::Cluster, name: name.to_owned() }
    }

    /// A secret's key.
    #[must_use]
    pub fn secret(name: &str) -> Self {
        Self { kind: Kind::Secret, name: name.to_owned() }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl fmt::Debug for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The version of a resource.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub String);

impl Version {
    /// The version of `body`; equal bodies under one `salt` have equal versions.
    #[must_use]
    pub fn of(body: &Any, salt: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(salt).chain_update(&body.value).finalize();
        Self(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One resource, encoded. Its `Debug` shows no content: it may be a key.
#[derive(Clone)]
pub struct Resource {
    /// The hash of the content.
    pub version: Version,
    /// The content.
    pub body: Any,
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource").field("version", &self.version).finish_non_exhaustive()
    }
}

/// What a gateway should have of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// This version of it.
    Version(&'a Version),
    /// Whatever it has.
    Any,
    /// There is no such resource.
    Nothing,
}

/// Everything that gateways should hold.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    resources: BTreeMap<ResourceKey, Arc<Resource>>,
    /// What gateways should have of these can't be known now.
    unknown: BTreeSet<ResourceKey>,
}

impl Snapshot {
    /// Adds or replaces `key`.
    pub fn insert<M: Message + prost::Name>(&mut self, key: ResourceKey, content: &M, salt: &[u8]) {
        let body = Any { type_url: M::type_url(), value: content.encode_to_vec() };
        let version = Version::of(&body, salt);
        self.resources.insert(key, Arc::new(Resource { version, body }));
    }

    /// It can't be known now whether there is `key`: who holds it keeps it.
    pub fn leave(&mut self, key: ResourceKey) {
        self.unknown.insert(key);
    }

    /// What a gateway should have of `key`.
    #[must_use]
    pub fn want(&self, key: &ResourceKey) -> Want<'_> {
        match self.resources.get(key) {
            Some(resource) => Want::Version(&resource.version),
            None if self.unknown.contains(key) => Want::Any,
            None => Want::Nothing,
        }
    }

    /// Those of `kind`, by name.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = (&str, &Arc<Resource>)> {
        self.resources
            .iter()
            .filter(move |(key, _)| key.kind == kind)
            .map(|(key, resource)| (key.name.as_str(), resource))
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        self.resources.get(key)
    }

    /// The version that gateways should hold of `key`.
    #[must_use]
    pub fn version(&self, key: &ResourceKey) -> Option<&Version> {
        self.resources.get(key).map(|resource| &resource.version)
    }

    /// Whether both hold the same versions.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.unknown == other.unknown
            && self.resources.len() == other.resources.len()
            && self.resources.iter().all(|(key, resource)| other.version(key) == Some(&resource.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_follows_content_and_salt() {
        let body = |value: &[u8]| Any { type_url: String::new(), value: value.to_vec() };
        assert_eq!(Version::of(&body(b"a"), b""), Version::of(&body(b"a"), b""));
        assert_ne!(Version::of(&body(b"a"), b""), Version::of(&body(b"b"), b""));
        assert_ne!(Version::of(&body(b"a"), b"x"), Version::of(&body(b"a"), b"y"));
    }

    #[test]
    fn a_kind_is_found_by_its_type_url() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_type_url(kind.type_url()), Some(kind));
        }
        assert_eq!(Kind::of_type_url("type.googleapis.com/envoy.config.listener.v3.Listener"), None);
    }
}
