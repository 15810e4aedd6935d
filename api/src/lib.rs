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
    let mut crds = vec![AIBudget::crd(), ModelBackend::crd(), ModelRoute::crd()];
    for version in crds.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        schema.into_iter().for_each(unwrap_lines);
    }
    crds
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
