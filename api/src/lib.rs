//! Plimsoll's custom resources, `plimsoll.dev/v1alpha1`: what people write and read.
//!
//! The types, the schema generated from them, and [`validate`], which says offline what an API server
//! would say. What needs other objects, or a calendar, is `plan`'s affair: here stands only what one
//! manifest shows. Every string and list is bounded, or the cost check of CEL rejects the whole CRD.

pub mod backend;
pub mod budget;
mod decimal;
mod object;
pub mod route;
mod schema;
pub mod shared;
mod structure;
mod validate;

pub use backend::{ModelBackend, ModelBackendSpec, ModelBackendStatus};
pub use budget::{AIBudget, AIBudgetSpec, AIBudgetStatus};
pub use decimal::Decimal;
pub use object::{Object, ObjectId};
pub use route::{ModelRoute, ModelRouteSpec, ModelRouteStatus};
pub use validate::{KINDS, Problem, validate};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

/// The API group.
pub const GROUP: &str = "plimsoll.dev";
/// Its served version.
pub const VERSION: &str = "v1alpha1";
/// What stands in a manifest's `apiVersion`.
pub const API_VERSION: &str = "plimsoll.dev/v1alpha1";

/// The definitions that an API server needs, in the order of their names.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![definition::<AIBudget>(), definition::<ModelBackend>(), definition::<ModelRoute>()]
}

/// The definition of `K` as API servers get it, and as [`validate`] goes by.
pub(crate) fn definition<K: CustomResourceExt>() -> CustomResourceDefinition {
    let mut crd = K::crd();
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            unwrap_lines(schema);
            drop_defaults(schema, false);
        }
    }
    crd
}

/// Drops the defaults of what stands in lists. An API server would write them into the list, and whoever
/// compares it with the manifest (kubectl apply, Argo CD) would see a difference for ever. The types have
/// the same defaults.
fn drop_defaults(schema: &mut JSONSchemaProps, is_in_list: bool) {
    if is_in_list {
        schema.default = None;
    }
    schema
        .properties
        .iter_mut()
        .flat_map(|fields| fields.values_mut())
        .for_each(|field| drop_defaults(field, is_in_list));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_defaults(items, true);
    }
}

/// Makes one line of each paragraph of a description: it was cut for this source, and `kubectl explain` cuts
/// it again, for the reader's screen.
fn unwrap_lines(schema: &mut JSONSchemaProps) {
    if let Some(text) = &mut schema.description {
        let paragraphs: Vec<String> = text.split("\n\n").map(|lines| lines.replace('\n', " ")).collect();
        *text = paragraphs.join("\n\n");
    }
    schema.properties.iter_mut().flat_map(|fields| fields.values_mut()).for_each(unwrap_lines);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        unwrap_lines(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(each)) = &mut schema.additional_properties {
        unwrap_lines(each);
    }
}
