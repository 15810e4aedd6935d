//! One status on its way: a server-side apply as `plimsoll-status`, and what came of it.
//!
//! So that the status is ours and nothing else is, and only for the version of the object that it was made
//! for. Which status, when, and what then, is not decided here.

use super::access;
use super::metrics::Why;
use super::stored::{Entry, Fingerprint, Reported};
use crate::report::{Report, Standing};
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::core::object::HasStatus;
use kube::{Client, Resource};
use plimsoll_api::{AIBudget, ModelBackend, ModelRoute, ObjectId};
use plimsoll_core::ids::ObjectName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who owns statuses, in `metadata.managedFields`.
const MANAGER: &str = "plimsoll-status";

/// A kind that has statuses.
pub(super) trait Kind:
    Resource<DynamicType = ()> + HasStatus<Status: Reported + DeserializeOwned + Send + Sync + 'static>
{
    /// Its statuses in `report`.
    fn standings(report: &Report) -> &BTreeMap<ObjectName, Standing<Self::Status>>;
}

impl Kind for AIBudget {
    fn standings(report: &Report) -> &BTreeMap<ObjectName, Standing<Self::Status>> {
        &report.budgets
    }
}

impl Kind for ModelRoute {
    fn standings(report: &Report) -> &BTreeMap<ObjectName, Standing<Self::Status>> {
        &report.routes
    }
}

impl Kind for ModelBackend {
    fn standings(report: &Report) -> &BTreeMap<ObjectName, Standing<Self::Status>> {
        &report.backends
    }
}

/// What is sent. The version makes the API server refuse it for a successor of the same name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Apply<'a, S> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Metadata<'a>,
    status: &'a S,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    namespace: &'a str,
    name: &'a str,
    resource_version: &'a str,
}

/// What is read of the answer: the spec may be one that this version can't read.
#[derive(Deserialize)]
#[serde(bound(deserialize = "S: DeserializeOwned"))]
struct Answer<S> {
    metadata: ObjectMeta,
    #[serde(default)]
    status: Option<S>,
}

/// What the API server has after a write.
#[derive(Debug)]
pub(super) struct Taken {
    /// The version that was written to.
    pub(super) from: Arc<str>,
    pub(super) version: String,
    pub(super) status: Option<Fingerprint>,
}

/// Why a status was not written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no such object.
    Gone,
    /// It has changed meanwhile, or another object has the name.
    Conflict,
    /// It may not be: which right is missing.
    Denied(String),
    /// It can't be: the API server's words.
    Refused(String),
    /// It may be later.
    Away(String),
}

impl Failure {
    pub(super) fn why(&self) -> Why {
        let why = match self {
            Self::Gone => "gone",
            Self::Conflict => "conflict",
            Self::Denied(_) => "denied",
            Self::Refused(_) => "refused",
            Self::Away(_) => "away",
        };
        Why { why }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_not_found() => Self::Gone,
            kube::Error::Api(status) if status.is_conflict() => Self::Conflict,
            kube::Error::Api(status) => match access::missing_rule(&status) {
                Some(rule) => Self::Denied(rule.to_string()),
                None if access::may_pass(&status) => Self::Away(access::words(&kube::Error::Api(status))),
                None => Self::Refused(status.message),
            },
            error => Self::Away(access::words(&error)),
        }
    }
}

/// Writes one status; what the API server has of it then.
pub(super) async fn apply<K: Kind>(
    client: &Client,
    id: &ObjectId,
    entry: &Entry,
    status: &K::Status,
) -> Result<Taken, Failure> {
    let ObjectId { namespace, name, .. } = id;
    let patch = Patch::Apply(Apply {
        api_version: &K::api_version(&()),
        kind: &K::kind(&()),
        metadata: Metadata { namespace, name, resource_version: &entry.version },
        status,
    });
    let path = K::url_path(&(), Some(namespace));
    let parameters = PatchParams::apply(MANAGER).force();
    let request = kube::core::Request::new(path)
        .patch_subresource("status", name, &parameters, &patch)
        .map_err(kube::Error::BuildRequest)?;
    let answer: Answer<K::Status> = client.request(request).await?;
    let version = answer.metadata.resource_version.unwrap_or_default();
    Ok(Taken {
        from: Arc::clone(&entry.version),
        version,
        status: answer.status.as_ref().map(Fingerprint::of),
    })
}
