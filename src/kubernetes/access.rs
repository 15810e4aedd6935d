//! What a refusal of the API server means: which rule is missing, and for whom. Pure.

use kube::core::Status;
use std::fmt;

/// A request that nothing allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Who asked, as the API server names them: `system:serviceaccount:plimsoll-system:plimsoll`.
    user: String,
    /// `patch`.
    verb: String,
    /// `aibudgets/status`.
    resource: String,
    /// `plimsoll.dev`; empty for the core group.
    group: String,
    /// Where it was asked for; absent: everywhere.
    namespace: Option<String>,
}

/// The rule that `status` says is missing. None for every other refusal: a namespace that ends, a quota, an
/// admission webhook.
pub(super) fn missing_rule(status: &Status) -> Option<Rule> {
    if !status.is_forbidden() {
        return None;
    }
    // aibudgets.plimsoll.dev "all" is forbidden: User "…" cannot patch resource "aibudgets/status" in API
    // group "plimsoll.dev" in the namespace "finance"
    let (_, rest) = status.message.split_once("User \"")?;
    let (user, rest) = rest.split_once("\" cannot ")?;
    let (verb, rest) = rest.split_once(" resource \"")?;
    let (resource, rest) = rest.split_once("\" in API group \"")?;
    let (group, rest) = rest.split_once('"')?;
    let namespace = rest.strip_prefix(" in the namespace \"").and_then(|rest| rest.split_once('"'));
    Some(Rule {
        user: user.to_owned(),
        verb: verb.to_owned(),
        resource: resource.to_owned(),
        group: group.to_owned(),
        namespace: namespace.map(|(namespace, _)| namespace.to_owned()),
    })
}

/// A refusal as the rest of a sentence: what is missing and whom to grant it, or the API server's own words.
fn denied(status: &Status) -> String {
    missing_rule(status).map_or_else(|| status.message.clone(), |rule| rule.to_string())
}

/// Whether the same request may be answered otherwise later, although nobody acts on what it asks for.
pub(super) fn may_pass(status: &Status) -> bool {
    matches!(status.code, 0 | 401 | 408 | 429 | 500..)
}

/// What `error` means for everything that is asked of the API server, as the rest of a sentence.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => answer(status),
        // The parser's words may quote what it read, and that may be a Secret.
        kube::Error::SerdeError(_) => NOT_UNDERSTOOD.to_owned(),
        error => format!("the API server can't be reached: {}", root(error)),
    }
}

/// What it means that an answer makes no sense.
pub(super) const NOT_UNDERSTOOD: &str =
    "the API server's answer is not understood; is it a Kubernetes API server, and none too new?";

/// What an answer of the API server means that is not the one asked for.
pub(super) fn answer(status: &Status) -> String {
    match status {
        status if status.code == 401 => {
            "the API server does not know who this is (401); check the kubeconfig's credentials".to_owned()
        }
        status if status.is_forbidden() => denied(status),
        status => format!("the API server answers {}: {}", status.code, status.message),
    }
}

/// The innermost cause: the layers above it say only where it passed.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, verb, resource, group, namespace } = self;
        write!(f, "grant {verb} on {resource} in ")?;
        match group.as_str() {
            "" => f.write_str("the core API group")?,
            group => write!(f, "API group {group}")?,
        }
        let account = user.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
        match account {
            Some((namespace, name)) => write!(f, " to ServiceAccount {namespace}/{name}")?,
            None => write!(f, " to user {user}")?,
        }
        match namespace {
            Some(namespace) => write!(f, " (asked for in namespace {namespace})"),
            None => f.write_str(" (asked for in all namespaces)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(message: &str) -> Status {
        Status::failure(message, "Forbidden").with_code(403)
    }

    #[test]
    fn a_denied_request_says_which_rule_is_missing_and_for_whom() {
        let status = forbidden(
            r#"aibudgets.plimsoll.dev "all" is forbidden: User "system:serviceaccount:plimsoll-system:plimsoll" cannot patch resource "aibudgets/status" in API group "plimsoll.dev" in the namespace "finance""#,
        );
        assert_eq!(
            denied(&status),
            "grant patch on aibudgets/status in API group plimsoll.dev to ServiceAccount plimsoll-system/plimsoll \
             (asked for in namespace finance)"
        );
    }

    #[test]
    fn a_list_of_everything_and_a_person_are_named_as_such() {
        let status = forbidden(
            r#"secrets is forbidden: User "jane@example.com" cannot list resource "secrets" in API group "" at the cluster scope: RBAC: clusterrole.rbac.authorization.k8s.io "x" not found"#,
        );
        let text = "grant list on secrets in the core API group to user jane@example.com (asked for in all namespaces)";
        assert_eq!(denied(&status), text);
    }

    #[test]
    fn a_refusal_that_no_rule_would_lift_keeps_the_servers_words() {
        let words = r#"events.events.k8s.io "all.1" is forbidden: unable to create new content in namespace finance because it is being terminated"#;
        assert_eq!(missing_rule(&forbidden(words)), None);
        assert_eq!(denied(&forbidden(words)), words);
        let other = Status::failure(r#"User "x" cannot get resource "y" in API group "z""#, "NotFound");
        assert_eq!(missing_rule(&other.with_code(404)), None);
    }
}
