//! One request, from its head and body to what must be reserved, sent and settled.
//!
//! Pure: the filter supplies bytes and carries out what comes back. How a dialect's body is read and
//! changed stands in its file below; slices in [`crate::slice`]; reading usage out of answers in
//! [`crate::meter`]; what is charged at the end in [`crate::settle`].

mod openai;

use crate::account::{Charge, LimitKey, MAX_ACCOUNTS};
use crate::budget::{BudgetEntry, Traits};
use crate::caller::{Dimensions, dimension};
use crate::ids::ObjectName;
use crate::money::NanoUsd;
use crate::policy::{self, Dialect, Enforcement, Installation, Model};
use crate::price::{PriceVersion, Rates};
use crate::protocol::{Caller, NONE};
use crate::refusal::{Invalid, Refusal, Unpriced, UnpricedCall, repeated};
use crate::snapshot::{BackendEntry, Resolved, RouteEntry, Snapshot};
use openai::Request;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// What a request's headers say, read by the shell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// Envoy's request id.
    pub request_id: &'a str,
    /// Which attempt of the request this is, from 0.
    pub attempt: u32,
    /// `:method`.
    pub method: &'a str,
    /// The path with its query, `/v1/chat/completions`.
    pub path: &'a str,
    /// The caller's namespace; absent: anonymous.
    pub namespace: Option<&'a str>,
    /// `x-plimsoll-feature`.
    pub feature: Option<&'a str>,
    /// `x-plimsoll-user`; else the body's own field.
    pub user: Option<&'a str>,
    /// `x-plimsoll-customer`.
    pub customer: Option<&'a str>,
    /// `x-plimsoll-session`.
    pub session: Option<&'a str>,
}

/// What to do with a request whose body is complete.
#[derive(Debug)]
pub enum Verdict {
    /// Reserve (where `limits` is not empty) and send.
    Send(Box<Call>),
    /// Answer this.
    Refuse(Box<Refusal>),
    /// Not ours (say `GET /v1/models`, or an unknown model while observing): send there with the body
    /// unchanged and unmetered.
    Pass(Passage),
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Envoy's cluster.
    pub cluster: String,
    /// The `:authority` to send.
    pub authority: String,
    /// The `:path` to send.
    pub path: String,
}

/// A call that is routed and priced, not yet reserved.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where it goes.
    pub passage: Passage,
    /// How the client and the backend speak.
    pub dialect: Dialect,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Enforce: something that enforces matched. Observe: nothing may be refused or altered.
    pub enforcement: Enforcement,
    /// The limits of every enforcing budget that matches; the accounts to reserve in.
    pub limits: Vec<LimitKey>,
    /// The observing budgets that match.
    pub observed: Vec<ObjectName>,
    /// What it may take at worst.
    pub reserve: Charge,
    /// The rates that settle it; absent: unpriced, charged 0.
    pub rates: Option<Rates>,
    /// The version of those rates; 0 where absent.
    pub price_version: PriceVersion,
    /// The changes to the body, ascending and disjoint; empty: send it as it came.
    pub edits: Vec<Edit>,
    /// The output bound that stands in place of the client's own, larger one; absent: that stands, or there was none.
    pub lowered: Option<u64>,
    /// The client did not ask for usage in its stream, so what that adds is ours to remove
    /// ([`crate::meter::Stripper`]).
    pub strip_usage: bool,
    /// How long the call may take, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Who called.
    pub caller: Caller,
    /// The raw user id, for matching again.
    user: RawUser,
    /// Why its cost has no bound, if so.
    unpriced: Option<Unpriced>,
    /// The `ModelRoute`; absent for a backend's model under its own name.
    pub route: Option<Arc<RouteEntry>>,
    /// The backend.
    pub backend: Arc<BackendEntry>,
    /// The model as sent upstream.
    pub model: String,
}

/// A raw user id: nothing may show it.
#[derive(Clone)]
struct RawUser(Option<Box<str>>);

impl fmt::Debug for RawUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawUser")
    }
}

impl Call {
    /// Matches it anew: while it was paused the policy may have changed. Backend, price and body stay.
    ///
    /// # Errors
    /// What refuses it now; it is as it was then.
    pub fn match_again(&mut self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let installation = snapshot.installation().ok_or(Refusal::NotReady)?;
        let traits = Traits {
            namespace: &self.caller.namespace,
            feature: &self.caller.feature,
            user: self.user.0.as_deref().unwrap_or(NONE),
            route: self.route(),
            model: &self.model,
        };
        let matched = Matched::of(snapshot, installation, &traits);
        let limits = matched.limits()?;
        if let Some(why) = self.unpriced {
            matched.admits_unpriced(&self.backend.name, &self.model, why)?;
        }
        (self.enforcement, self.limits, self.observed) = (matched.enforcement(), limits, matched.observed());
        Ok(())
    }

    /// The route's name; empty for a backend's model under its own name.
    #[must_use]
    pub fn route(&self) -> &str {
        self.route.as_ref().map_or("", |route| &route.name.name)
    }

    /// The tier's name; empty likewise.
    #[must_use]
    pub fn tier(&self) -> &str {
        self.route.as_ref().map_or("", |route| &route.body.tier)
    }
}

/// Replaces the bytes `start..end` of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// First byte replaced.
    pub start: usize,
    /// First byte kept after it; equal to `start` for an insertion.
    pub end: usize,
    /// What stands there instead.
    pub text: String,
}

/// `body` with `edits` made; they must be ascending and disjoint, as [`Call::edits`] are.
#[must_use]
pub fn apply_edits(body: &[u8], edits: &[Edit]) -> Vec<u8> {
    let added: usize = edits.iter().map(|edit| edit.text.len()).sum();
    let mut out = Vec::with_capacity(body.len() + added);
    let mut kept = 0;
    for Edit { start, end, text } in edits {
        out.extend_from_slice(&body[kept..*start]);
        out.extend_from_slice(text.as_bytes());
        kept = *end;
    }
    out.extend_from_slice(&body[kept..]);
    out
}

/// What becomes of a request.
///
/// `hmac_key` is the installation's, for the hash of the user id. A request is refused only where
/// something enforces: see [`Snapshot::enforces`] and invariant I9.
#[must_use]
pub fn decide(snapshot: &Snapshot, head: &Head<'_>, body: &[u8], hmac_key: &[u8; 32]) -> Verdict {
    match verdict(snapshot, head, body, hmac_key) {
        Ok(verdict) => verdict,
        Err(refusal) => Verdict::Refuse(Box::new(refusal)),
    }
}

fn verdict(
    snapshot: &Snapshot,
    head: &Head<'_>,
    body: &[u8],
    hmac_key: &[u8; 32],
) -> Result<Verdict, Refusal> {
    let installation = snapshot.installation().ok_or(Refusal::NotReady)?;
    let pass = |refusal: Refusal| lenient(snapshot, installation, head).map(Verdict::Pass).ok_or(refusal);
    let (path, query) = split_query(head.path);
    if head.namespace.is_none()
        && installation.mode == Enforcement::Enforce
        && installation.anonymous == policy::Verdict::Deny
    {
        return Err(Refusal::Unauthenticated);
    }
    let Some(rest) = completions(head.method, path) else {
        // Reading what models there are costs nothing; every other path may, and is not metered.
        if head.method == "GET"
            && is_model_list(path)
            && let Some(passage) = to_default(snapshot, installation, head)
        {
            return Ok(Verdict::Pass(passage));
        }
        return pass(Refusal::UnknownPath { path: repeated(path) });
    };
    let request = match Request::read(body) {
        Ok(request) => request,
        Err(invalid) => return pass(Refusal::Invalid(invalid)),
    };
    let dimensions = dimensions(installation, head, &request);
    let namespace = dimensions.namespace;
    let Some(resolved) = snapshot.resolve(namespace, &request.model) else {
        return pass(Refusal::ModelNotFound {
            model: repeated(&request.model),
            namespace: namespace.to_owned(),
        });
    };
    let chosen = choose(snapshot, &resolved, head.request_id)?;
    let traits = Traits {
        namespace,
        feature: &dimensions.feature,
        user: &dimensions.user,
        route: chosen.route.map_or("", |route| &route.name.name),
        model: &chosen.model.name,
    };
    let matched = Matched::of(snapshot, installation, &traits);
    let enforcement = matched.enforcement();
    if enforcement == Enforcement::Enforce
        && let Some(invalid) = request.invalid.clone().or(dimensions.invalid.clone())
    {
        return Err(Refusal::Invalid(invalid));
    }
    if installation.mode == Enforcement::Enforce
        && installation.unbudgeted == policy::Verdict::Deny
        && enforcement == Enforcement::Observe
    {
        return Err(Refusal::Unbudgeted { namespace: namespace.to_owned() });
    }
    let limits = matched.limits()?;
    let unpriced = unpriced(&request, chosen.model);
    if let Some(why) = unpriced {
        matched.admits_unpriced(&chosen.backend.name, &chosen.model.name, why)?;
    }
    let rates = chosen.model.rates.filter(|_| unpriced.is_none());
    let most = most_output(&request, &chosen, installation);
    let bound = match enforcement {
        Enforcement::Enforce => Some(most),
        // A route's bound is the route's rule: it needs no budget.
        Enforcement::Observe => chosen
            .route
            .and_then(|route| route.body.max_output_tokens)
            .filter(|_| installation.mode == Enforcement::Enforce),
    };
    let lowered = bound.filter(|bound| request.max_output().is_some_and(|own| own > *bound));
    let edits = request.edits(&chosen.model.name, bound);
    let backend = &chosen.backend.body;
    Ok(Verdict::Send(Box::new(Call {
        passage: Passage {
            cluster: cluster(installation, chosen.backend).to_owned(),
            authority: backend.authority.clone(),
            path: format!("{}{rest}{query}", backend.path_prefix),
        },
        dialect: backend.dialect,
        stream: request.stream,
        enforcement,
        limits,
        observed: matched.observed(),
        reserve: reserve(&request, body.len(), most, chosen.model, rates.as_ref()),
        price_version: rates
            .map_or_else(PriceVersion::default, |_| chosen.backend.price_version(&chosen.model.name)),
        rates,
        edits,
        lowered,
        strip_usage: request.stream && !request.asks_usage(),
        timeout_ms: chosen
            .route
            .and_then(|route| route.body.timeout_ms)
            .filter(|_| installation.mode == Enforcement::Enforce),
        caller: dimensions.caller(hmac_key),
        unpriced,
        user: RawUser((dimensions.user != NONE).then(|| dimensions.user.as_ref().into())),
        route: chosen.route.cloned(),
        backend: chosen.backend.clone(),
        model: chosen.model.name.clone(),
    })))
}

/// The path's part that follows the backend's prefix, if it is one that is metered.
fn completions(method: &str, path: &str) -> Option<&'static str> {
    const REST: &str = "/chat/completions";
    let before = path.strip_suffix(REST)?;
    (method == "POST" && (before == "/v1" || before.ends_with("/v1"))).then_some(REST)
}

/// `/v1/models` or one model of it. Nothing that a provider could read as another path: the request goes out
/// with the provider's key.
fn is_model_list(path: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    match path.strip_prefix("/v1/models") {
        Some("") => true,
        Some(rest) => rest.strip_prefix('/').is_some_and(|name| {
            !name.is_empty() && name.bytes().all(plain) && !name.bytes().all(|b| b == b'.')
        }),
        None => false,
    }
}

fn split_query(path: &str) -> (&str, &str) {
    path.split_at(path.find('?').unwrap_or(path.len()))
}

/// Where a request goes that may not be refused, though it is not understood.
fn lenient(snapshot: &Snapshot, installation: &Installation, head: &Head<'_>) -> Option<Passage> {
    let refusable = snapshot.enforces()
        || installation.mode == Enforcement::Enforce && installation.unbudgeted == policy::Verdict::Deny;
    if refusable { None } else { to_default(snapshot, installation, head) }
}

fn to_default(snapshot: &Snapshot, installation: &Installation, head: &Head<'_>) -> Option<Passage> {
    let backend = snapshot.backend(installation.default_backend.as_ref()?)?;
    let path = match head.path.strip_prefix("/v1") {
        Some(rest) if rest.is_empty() || rest.starts_with(['/', '?']) => {
            format!("{}{rest}", backend.body.path_prefix)
        }
        _ => head.path.to_owned(),
    };
    let cluster = cluster(installation, backend).to_owned();
    Some(Passage { cluster, authority: backend.body.authority.clone(), path })
}

/// While the installation observes, callers keep their own credential.
fn cluster<'s>(installation: &Installation, backend: &'s BackendEntry) -> &'s str {
    match installation.mode {
        Enforcement::Enforce => &backend.body.cluster,
        Enforcement::Observe => &backend.body.passthrough_cluster,
    }
}

fn dimensions<'a>(installation: &'a Installation, head: &Head<'a>, request: &Request<'a>) -> Dimensions<'a> {
    let mut invalid: Option<Invalid> = None;
    let header = |value: Option<&'a str>| value.map(Cow::Borrowed);
    let user = header(head.user.filter(|user| !user.is_empty())).or_else(|| request.user.clone());
    Dimensions {
        namespace: head.namespace.unwrap_or(&installation.anonymous_namespace),
        feature: dimension("x-plimsoll-feature", header(head.feature), &mut invalid),
        user: dimension("The user id", user, &mut invalid),
        customer: dimension("x-plimsoll-customer", header(head.customer), &mut invalid),
        session: dimension("x-plimsoll-session", header(head.session), &mut invalid),
        invalid,
    }
}

struct Chosen<'s> {
    route: Option<&'s Arc<RouteEntry>>,
    backend: &'s Arc<BackendEntry>,
    model: &'s Model,
}

/// The backend, by weight, drawn by the request id: a backtest repeats the choice.
fn choose<'s>(
    snapshot: &'s Snapshot,
    resolved: &Resolved<'s>,
    request_id: &str,
) -> Result<Chosen<'s>, Refusal> {
    match *resolved {
        Resolved::Model(backend, model) => Ok(Chosen { route: None, backend, model }),
        Resolved::Route(route) => {
            let draw = if route.body.backends.len() > 1 { draw(request_id) } else { 0 };
            let (backend, model) = snapshot
                .draw(route, draw)
                .ok_or_else(|| Refusal::ModelUnavailable { route: route.name.clone() })?;
            Ok(Chosen { route: Some(route), backend, model })
        }
    }
}

fn draw(request_id: &str) -> u64 {
    let digest = Sha256::digest(request_id.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

#[derive(Default)]
struct Matched<'s> {
    enforcing: Vec<&'s Arc<BudgetEntry>>,
    observing: Vec<&'s Arc<BudgetEntry>>,
}

impl<'s> Matched<'s> {
    fn of(snapshot: &'s Snapshot, installation: &Installation, traits: &Traits<'_>) -> Self {
        let mut matched = Self::default();
        snapshot.matching(traits, |budget| match (installation.mode, budget.body.enforcement) {
            (Enforcement::Enforce, Enforcement::Enforce) => matched.enforcing.push(budget),
            (Enforcement::Observe, _) | (_, Enforcement::Observe) => matched.observing.push(budget),
        });
        matched
    }

    /// Enforce: something that enforces matched.
    fn enforcement(&self) -> Enforcement {
        if self.enforcing.is_empty() { Enforcement::Observe } else { Enforcement::Enforce }
    }

    /// The names of those that observe.
    fn observed(&self) -> Vec<ObjectName> {
        self.observing.iter().map(|budget| budget.name.clone()).collect()
    }

    /// The limits of those that enforce.
    fn limits(&self) -> Result<Vec<LimitKey>, Refusal> {
        let limits: Vec<LimitKey> =
            self.enforcing.iter().flat_map(|budget| budget.limits.iter().cloned()).collect();
        if limits.len() > MAX_ACCOUNTS {
            return Err(Refusal::TooManyAccounts { matched: limits.len() });
        }
        Ok(limits)
    }

    fn admits_unpriced(&self, backend: &ObjectName, model: &str, why: Unpriced) -> Result<(), Refusal> {
        let denies = self.enforcing.iter().find(|budget| budget.body.unpriced == policy::Verdict::Deny);
        let Some(budget) = denies else { return Ok(()) };
        Err(Refusal::Unpriced(Box::new(UnpricedCall {
            budget: budget.name.clone(),
            contact: budget.body.contact.clone(),
            backend: backend.clone(),
            model: model.to_owned(),
            why,
        })))
    }
}

/// Why the call's cost has no bound, if so.
fn unpriced(request: &Request<'_>, model: &Model) -> Option<Unpriced> {
    if model.rates.is_none() {
        return Some(Unpriced::NoPrice);
    }
    let apart = request.apart.map(Unpriced::BilledApart);
    apart.or_else(|| request.unbounded.filter(|_| model.context_tokens.is_none()).map(Unpriced::NoContext))
}

/// The most output tokens of one choice: the least of client's, route's and model's, else the installation's.
fn most_output(request: &Request<'_>, chosen: &Chosen<'_>, installation: &Installation) -> u64 {
    let route = chosen.route.and_then(|route| route.body.max_output_tokens);
    let bounds = [request.max_output(), route, chosen.model.max_output_tokens];
    bounds.into_iter().flatten().min().unwrap_or(installation.max_output_tokens)
}

/// What the call may take at worst (LEDGER.md, "Reserve and settlement").
fn reserve(request: &Request<'_>, bytes: usize, most: u64, model: &Model, rates: Option<&Rates>) -> Charge {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let input = match request.unbounded {
        Some(_) => model.context_tokens.unwrap_or(bytes),
        None => bytes,
    };
    let output = request.choices.saturating_mul(most).saturating_add(request.predicted);
    let usd = rates.map_or(NanoUsd::ZERO, |rates| rates.bound(input, output));
    Charge { usd, tokens: input.saturating_add(output), requests: 1 }
}

#[cfg(test)]
mod tests {
    use super::is_model_list;

    #[test]
    fn no_path_of_models_leads_anywhere_else() {
        for path in ["/v1/models", "/v1/models/gpt-5.2", "/v1/models/ft:gpt-5.2:acme::x_1"] {
            assert!(is_model_list(path), "{path}");
        }
        for path in [
            "/v1/models/",
            "/v1/models/..",
            "/v1/models/../files",
            "/v1/models/%2e%2e/files",
            "/v1/models/a/b",
            "/v1/models/..%2ffiles",
            "/v1/modelsx",
            "/v1/models/a;b",
            "/v1/models/a\\..\\b",
        ] {
            assert!(!is_model_list(path), "{path}");
        }
    }
}
