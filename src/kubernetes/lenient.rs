//! Reading an object of ours of which this version may not understand everything.
//!
//! A status that makes no sense is none: a newer version wrote it, and this one will write its own. A spec
//! that makes no sense leaves the metadata, so that one such object does not end a whole list.

use kube::Resource;
use kube::api::{ObjectMeta, PartialObjectMeta};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;

/// An object, or what is left of it.
#[derive(Clone, Debug)]
pub(super) struct Lenient<K>(pub(super) Result<K, Unreadable>);

/// An object whose spec makes no sense.
#[derive(Clone, Debug)]
pub(super) struct Unreadable {
    pub(super) metadata: ObjectMeta,
    /// The parser's words.
    pub(super) error: String,
}

impl<'de, K: DeserializeOwned + Resource> Deserialize<'de> for Lenient<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let read = K::deserialize(&value).or_else(|error| {
            let status = value.as_object_mut().and_then(|object| object.remove("status"));
            let without_status = status.and_then(|_| K::deserialize(&value).ok());
            without_status.ok_or(error)
        });
        Ok(Self(match read {
            Ok(object) => Ok(object),
            Err(error) => {
                let PartialObjectMeta { metadata, .. } =
                    PartialObjectMeta::<K>::deserialize(&value).map_err(D::Error::custom)?;
                Err(Unreadable { metadata, error: error.to_string() })
            }
        }))
    }
}

impl<K: Resource> Resource for Lenient<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, K::meta_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_api::AIBudget;
    use serde_json::json;

    fn read(limits: Value, action: &str) -> Lenient<AIBudget> {
        let stage = json!({"trigger": "Used", "percent": 90, "action": action});
        let limit = json!({"name": "m", "window": {}, "amount": "1", "spent": "1", "usedPercent": "90.0",
            "stages": [stage]});
        serde_json::from_value(json!({
            "apiVersion": "plimsoll.dev/v1alpha1", "kind": "AIBudget",
            "metadata": {"name": "all", "namespace": "finance", "uid": "1"},
            "spec": {"limits": limits}, "status": {"limits": [limit]},
        }))
        .unwrap()
    }

    #[test]
    fn a_status_of_another_version_is_none_and_the_spec_counts() {
        let limits = || json!([{"name": "m", "amount": 1}]);
        assert!(read(limits(), "Notify").0.unwrap().status.is_some());
        let newer = read(limits(), "Teleport").0.unwrap();
        assert!(newer.status.is_none() && newer.spec.limits.len() == 1);
    }

    #[test]
    fn a_spec_that_makes_no_sense_leaves_the_metadata() {
        let unreadable = read(json!("none"), "Notify");
        assert_eq!(unreadable.meta().uid.as_deref(), Some("1"));
        assert!(unreadable.0.unwrap_err().error.contains("invalid type: string"));
    }
}
