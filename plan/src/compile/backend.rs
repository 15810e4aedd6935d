//! A `ModelBackend` into its policy body and its two clusters.

use super::selected;
use super::url::BaseUrl;
use crate::plan::{EnvoyCluster, Problem, SecretRef};
use crate::settings::Settings;
use crate::world::{SecretText, World};
use plimsoll_api::backend::{self as api, ModelBackend};
use plimsoll_api::shared::SecretKeyRef;
use plimsoll_api::{Decimal, ModelBackendSpec};
use plimsoll_core::ids::ObjectName;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{Backend, Dialect, Model, Namespaces};
use plimsoll_core::price::Rates;
use std::collections::BTreeMap;

/// What gateways should hold of `backend`, and its clusters. Whether its key exists is [`key`]'s affair.
///
/// # Errors
/// Everything that is wrong with it; then nothing of it can be in force.
pub fn compile(
    backend: &ModelBackend,
    namespaces: &BTreeMap<String, BTreeMap<String, String>>,
    settings: &Settings,
) -> Result<(Backend, [EnvoyCluster; 2]), Vec<Problem>> {
    let ModelBackendSpec { provider, models, allowed_routes } = &backend.spec;
    let api::Provider { api, base_url, api_key_secret_ref, discount_percent } = provider;
    let own = backend.metadata.namespace.clone().unwrap_or_default();
    let name = ObjectName::new(&*own, backend.metadata.name.clone().unwrap_or_default());
    let mut problems = Vec::new();
    let url = BaseUrl::parse(base_url).map_err(|error| Problem {
        reason: "InvalidURL",
        field: "spec.provider.baseURL".to_owned(),
        message: format!("spec.provider.baseURL {error}"),
    });
    if let Ok(url) = &url
        && own != settings.root_namespace
    {
        problems.extend(untrusted(url, base_url, &settings.root_namespace));
    }
    let discount = discount_percent.as_ref().map_or(Ok(NanoUsd::ZERO), discount).map_err(|error| Problem {
        reason: "InvalidDiscount",
        field: "spec.provider.discountPercent".to_owned(),
        message: format!("spec.provider.discountPercent {error}"),
    });
    let kept = discount.as_ref().map_or(HUNDRED, |discount| HUNDRED - discount.0);
    let mut bodies = Vec::new();
    for (index, model) in models.iter().enumerate() {
        let rates =
            model.price.as_ref().map(|price| rates(price, kept, &format!("spec.models[{index}].price")));
        let rates = rates.transpose().unwrap_or_else(|wrong| {
            problems.extend(wrong);
            None
        });
        bodies.push(Model {
            name: model.name.clone(),
            context_tokens: model.context_tokens.map(u64::from),
            max_output_tokens: model.max_output_tokens.map(u64::from),
            rates,
        });
    }
    let (url, _) = match (url, discount) {
        (Ok(url), Ok(discount)) if problems.is_empty() => (url, discount),
        (url, discount) => {
            problems.extend(url.err().into_iter().chain(discount.err()));
            return Err(problems);
        }
    };
    let cluster = |name: String, inject_key| EnvoyCluster {
        name,
        host: url.host.clone(),
        port: url.port,
        tls: url.tls,
        inject_key,
    };
    let key = api_key_secret_ref.as_ref().map(|SecretKeyRef { name, key }| SecretRef {
        secret: ObjectName::new(&*own, &**name),
        key: key.clone(),
    });
    let clusters =
        [cluster(format!("backend/{name}"), key), cluster(format!("backend/{name}/passthrough"), None)];
    let body = Backend {
        dialect: match api {
            api::Api::OpenAI => Dialect::OpenAI,
        },
        cluster: clusters[0].name.clone(),
        passthrough_cluster: clusters[1].name.clone(),
        authority: url.authority,
        path_prefix: url.path,
        // Nothing is told of a provider yet, so the dearer case holds: an abandoned call settles at its reserve.
        bills_after_disconnect: true,
        allowed: allowed(&allowed_routes.namespaces, own, namespaces),
        models: bodies,
    };
    Ok((body, clusters))
}

/// Whether the key of a backend can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// It is there, or none is needed.
    Known,
    /// Nobody may say whether it is there: gateways that hold it go on with it.
    Unknown(Problem),
    /// There is none.
    Missing(Problem),
}

/// Whether the key of `backend` can be had.
#[must_use]
pub fn key(backend: &ModelBackend, world: &World) -> Key {
    let World { settings, secrets, secrets_denied, .. } = world;
    let Some(SecretKeyRef { name, key }) = backend.spec.provider.api_key_secret_ref.as_ref() else {
        return Key::Known;
    };
    let namespace = backend.metadata.namespace.as_deref().unwrap_or_default();
    let secret = ObjectName::new(namespace, &**name);
    let problem = |reason, message: String| {
        let field = "spec.provider.apiKeySecretRef";
        Problem { reason, field: field.to_owned(), message: format!("{field}: {message}") }
    };
    if !settings.may_hold_keys(namespace) {
        let root = &settings.root_namespace;
        let todo =
            format!("move the backend to {root}, or add {namespace} to the installation's secretNamespaces");
        let message = format!("Secrets of namespace {namespace} are not read; {todo}");
        return Key::Missing(problem("SecretNotPermitted", message));
    }
    match (secrets.get(&secret), secrets_denied.get(namespace)) {
        (None, Some(why)) => {
            let message =
                format!("Secret {secret} can't be read: {why}. Gateways that hold the key go on with it");
            Key::Unknown(problem("SecretForbidden", message))
        }
        (None, None) => Key::Missing(problem(
            "SecretNotFound",
            format!("Secret {secret} does not exist; create it with the key {key}"),
        )),
        (Some(keys), _) if keys.get(key).is_none_or(SecretText::is_blank) => Key::Missing(problem(
            "SecretKeyNotFound",
            format!("Secret {secret} has nothing under the key {key}; add it"),
        )),
        (Some(_), _) => Key::Known,
    }
}

fn untrusted(url: &BaseUrl, given: &str, root: &str) -> Option<Problem> {
    let field = "spec.provider.baseURL";
    let (reason, what) = match (url.is_private(), url.tls) {
        (true, _) => ("PrivateAddress", "points to a private address"),
        (false, false) => ("PlainHTTP", "is plain HTTP"),
        (false, true) => return None,
    };
    let message = format!(
        "{field} \"{given}\" {what}, which is allowed only in the root namespace {root}; use a public https:// address, or move the backend there"
    );
    Some(Problem { reason, field: field.to_owned(), message })
}

fn allowed(
    scope: &api::NamespaceScope,
    own: String,
    namespaces: &BTreeMap<String, BTreeMap<String, String>>,
) -> Namespaces {
    match scope.from {
        api::From::Same => Namespaces::Only([own].into()),
        api::From::All => Namespaces::All,
        api::From::Selector => selected(&scope.selector.clone().unwrap_or_default(), namespaces),
    }
}

/// 100 percent, in billionths of a percent.
const HUNDRED: i64 = 100_000_000_000;

/// In billionths of a percent.
fn discount(percent: &Decimal) -> Result<NanoUsd, String> {
    let discount = percent.to_string().parse::<NanoUsd>().map_err(|error| error.to_string())?;
    if discount.0 > HUNDRED {
        return Err(format!(
            "\"{percent}\" is more than 100; write the share that is taken off, like \"12.5\""
        ));
    }
    Ok(discount)
}

/// What is left of the declared price; `kept` is in billionths of a percent.
fn rates(price: &api::Price, kept: i64, field: &str) -> Result<Rates, Vec<Problem>> {
    let api::Price { input_per_million, cached_input_per_million, output_per_million } = price;
    let mut problems = Vec::new();
    let mut rate = |declared: &Decimal, name: &str| {
        declared.to_string().parse::<NanoUsd>().map_or_else(
            |error| {
                let field = format!("{field}.{name}");
                let message = format!("{field} {error}");
                problems.push(Problem { reason: "InvalidPrice", field, message });
                NanoUsd::ZERO
            },
            |declared| discounted(declared, kept),
        )
    };
    let input = rate(input_per_million, "inputPerMillion");
    let cached_input =
        cached_input_per_million.as_ref().map_or(input, |price| rate(price, "cachedInputPerMillion"));
    let output = rate(output_per_million, "outputPerMillion");
    // Nothing is declared for writing to a cache: it is input.
    if problems.is_empty() {
        Ok(Rates { input, cached_input, cache_write: input, output })
    } else {
        Err(problems)
    }
}

/// Rounded up to the nano-dollar: never less than the provider bills.
fn discounted(declared: NanoUsd, kept: i64) -> NanoUsd {
    let hundred = i128::from(HUNDRED);
    let exact = i128::from(declared.0) * i128::from(kept);
    NanoUsd(i64::try_from((exact + hundred - 1) / hundred).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discount_is_exact_and_rounds_up() {
        let kept = |percent: &str| HUNDRED - discount(&Decimal::Text(percent.into())).unwrap().0;
        assert_eq!(discounted(NanoUsd(1_250_000_000), kept("0")), NanoUsd(1_250_000_000));
        assert_eq!(discounted(NanoUsd(1_250_000_000), kept("12.5")), NanoUsd(1_093_750_000));
        assert_eq!(discounted(NanoUsd(10), kept("33.333333333")), NanoUsd(7));
        assert_eq!(discounted(NanoUsd(1), kept("99.999999999")), NanoUsd(1));
        assert_eq!(discounted(NanoUsd(i64::MAX), kept("100")), NanoUsd(0));
        assert!(discount(&Decimal::Text("100.1".into())).is_err());
    }
}
