//! Refusals: why a call is not served, as one enum, rendered once per dialect.
//!
//! Every answer that Plimsoll gives in a provider's place is made here. Only the ledger says
//! `budget_exceeded` and `rate_limited` (DESIGN, I3): they are built from its [`No`], never guessed.
//! Strings of the client appear in the JSON body alone, shortened; headers carry our own words.

use crate::account::{Amount, LimitKey, Unit};
use crate::ids::ObjectName;
use crate::policy::Dialect;
use crate::protocol::{No, NoKind};
use crate::snapshot::Snapshot;
use serde_json::json;

/// Why a call is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 429 `budget_exceeded`: a limit is used up; a retry before the reset can't help.
    Exhausted(Box<Short>),
    /// 429 `rate_limited`: the rest of a limit is reserved by calls in flight; a retry soon may help.
    Contended(Box<Short>),
    /// 503 `ledger_unavailable`: the ledger did not answer.
    LedgerUnavailable,
    /// 503 `ledger_unavailable`: the gateway's log can't be written, so nothing would prove that the call left.
    LogUnwritable,
    /// 503 `not_ready`: the gateway has no policy yet.
    NotReady,
    /// 400 `invalid_request`: the body or a header can't be read.
    Invalid(Invalid),
    /// 413 `request_too_large`.
    TooLarge {
        /// The most bytes that a body may have.
        limit: u64,
    },
    /// 401 `unauthenticated`: callers without identity are not served here.
    Unauthenticated,
    /// 403 `unbudgeted`: no enforcing budget matches and the installation wants one.
    Unbudgeted {
        /// The call's namespace.
        namespace: String,
    },
    /// 403 `model_unpriced`: what the call can cost has no bound, and a budget that matches wants one.
    Unpriced(Box<UnpricedCall>),
    /// 403 `too_many_accounts`: more budgets match than one call can be charged to.
    TooManyAccounts {
        /// How many limits match.
        matched: usize,
    },
    /// 404 `model_not_found`: nobody serves this model to the caller.
    ModelNotFound {
        /// As sent, shortened.
        model: String,
        /// The call's namespace.
        namespace: String,
    },
    /// 503 `model_unavailable`: the route's backends are not known to this gateway (yet).
    ModelUnavailable {
        /// The route.
        route: ObjectName,
    },
    /// 404 `unknown_path`: nothing here answers to it.
    UnknownPath {
        /// As sent, without its query, shortened.
        path: String,
    },
}

/// The limit that a call does not fit in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// The budget's limit.
    pub limit: LimitKey,
    /// Settled and unaccounted.
    pub used: Amount,
    /// What may be used: where calls are blocked.
    pub amount: Amount,
    /// What this call would have reserved.
    pub reserve: Amount,
    /// When the window ends, in its zone: `2026-12-01T00:00+01:00`. Absent for `Total`.
    pub resets: Option<String>,
    /// Whom to ask.
    pub contact: Option<String>,
}

/// A call whose cost has no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpricedCall {
    /// The budget that wants one.
    pub budget: ObjectName,
    /// Printed in the refusal.
    pub contact: Option<String>,
    /// The backend.
    pub backend: ObjectName,
    /// The model as sent upstream.
    pub model: String,
    /// What is missing.
    pub why: Unpriced,
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// There is no body.
    #[error("The request has no body; send a JSON object.")]
    Empty,
    /// Not UTF-8 from this byte on.
    #[error("The body is not UTF-8 at byte {0}; JSON is UTF-8, and compressed bodies are not read.")]
    NotUtf8(usize),
    /// Not JSON.
    #[error("The body is not JSON: {0}.")]
    NotJson(String),
    /// JSON, but no object.
    #[error("The body is not a JSON object.")]
    NotAnObject,
    /// A key twice: two readers could understand two requests.
    #[error("\"{0}\" stands twice in the body; send it once.")]
    Duplicate(&'static str),
    /// A key that a careless reader takes for another.
    #[error("\"{sent}\" is not \"{known}\", and some servers take it for that; spell it \"{known}\".")]
    Misspelt {
        /// As sent.
        sent: String,
        /// The key it may be taken for.
        known: &'static str,
    },
    /// No model.
    #[error("\"model\" is missing; name a model or a route.")]
    NoModel,
    /// A field of another type.
    #[error("\"{field}\" must be {wanted}.")]
    Field {
        /// The field.
        field: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// A dimension that is too long.
    #[error("{what} has {length} bytes; at most {most} are allowed.")]
    TooLong {
        /// Which.
        what: &'static str,
        /// How long it is.
        length: usize,
        /// How long it may be.
        most: usize,
    },
    /// A dimension with control characters.
    #[error("{0} has control characters; remove them.")]
    ControlCharacters(&'static str),
}

/// Why the cost of a call has no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpriced {
    /// The model has no rates.
    NoPrice,
    /// The call holds what bytes don't bound, and the model's context is not known.
    NoContext(&'static str),
    /// The call asks for what is billed apart from tokens, or at other rates.
    BilledApart(&'static str),
}

/// An answer, ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The HTTP status.
    pub status: u16,
    /// Headers, in order; `content-type` among them.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

/// Seconds that a caller should wait where a retry may help.
const RETRY_AFTER_S: &str = "1";

/// The most characters of a client's string that a refusal repeats.
const MOST_REPEATED: usize = 128;

/// `text`, at most as long as a refusal repeats it.
pub(crate) fn repeated(text: &str) -> String {
    let mut short: String = text.chars().take(MOST_REPEATED).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl Refusal {
    /// What the ledger's no says to the caller.
    #[must_use]
    pub fn from_no(no: &No, snapshot: &Snapshot) -> Self {
        let limit = &no.account.limit;
        let known = snapshot.budget(&limit.budget);
        let declared = known.and_then(|budget| budget.limits.iter().find(|known| known.name == limit.limit));
        let short = Box::new(Short {
            limit: limit.clone(),
            used: no.used,
            // A limit that was deleted meanwhile has no amount; what is used stands for it.
            amount: declared.map_or(no.used, |declared| declared.block_at),
            reserve: no.reserve,
            resets: snapshot.resets(&limit.window, no.account.start),
            contact: known.and_then(|budget| budget.contact.clone()),
        });
        match no.kind {
            NoKind::Exhausted => Self::Exhausted(short),
            NoKind::Contended => Self::Contended(short),
        }
    }

    /// Its code, as in the body, in `x-plimsoll-reason` and in decision records.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Exhausted(_) => "budget_exceeded",
            Self::Contended(_) => "rate_limited",
            Self::LedgerUnavailable | Self::LogUnwritable => "ledger_unavailable",
            Self::NotReady => "not_ready",
            Self::Invalid(_) => "invalid_request",
            Self::TooLarge { .. } => "request_too_large",
            Self::Unauthenticated => "unauthenticated",
            Self::Unbudgeted { .. } => "unbudgeted",
            Self::Unpriced(_) => "model_unpriced",
            Self::TooManyAccounts { .. } => "too_many_accounts",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::ModelUnavailable { .. } => "model_unavailable",
            Self::UnknownPath { .. } => "unknown_path",
        }
    }

    /// Its HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Invalid(_) => 400,
            Self::Unauthenticated => 401,
            Self::Unbudgeted { .. } | Self::Unpriced(_) | Self::TooManyAccounts { .. } => 403,
            Self::ModelNotFound { .. } | Self::UnknownPath { .. } => 404,
            Self::TooLarge { .. } => 413,
            Self::Exhausted(_) | Self::Contended(_) => 429,
            Self::LedgerUnavailable
            | Self::LogUnwritable
            | Self::NotReady
            | Self::ModelUnavailable { .. } => 503,
        }
    }

    /// The limit that decided, where one did.
    #[must_use]
    pub fn short(&self) -> Option<&Short> {
        match self {
            Self::Exhausted(short) | Self::Contended(short) => Some(short),
            _ => None,
        }
    }

    /// The answer in `dialect`.
    #[must_use]
    pub fn render(&self, dialect: Dialect, request_id: &str) -> Rendered {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        match self.retry() {
            Retry::Never => headers.push(("x-should-retry", "false".to_owned())),
            Retry::Soon => headers.push(("retry-after", RETRY_AFTER_S.to_owned())),
        }
        headers.push(("x-plimsoll-reason", self.code().to_owned()));
        if let Some(budget) = self.budget() {
            headers.push(("x-plimsoll-budget", budget.to_string()));
        }
        if let Some(short) = self.short() {
            headers.push(("x-plimsoll-limit", short.limit.limit.clone()));
        }
        if let Self::Exhausted(_) = self {
            headers.push(("x-plimsoll-stage", "Block".to_owned()));
        }
        let body = match dialect {
            Dialect::OpenAI => self.openai(request_id),
        };
        Rendered { status: self.status(), headers, body }
    }

    fn budget(&self) -> Option<&ObjectName> {
        match self {
            Self::Unpriced(unpriced) => Some(&unpriced.budget),
            _ => self.short().map(|short| &short.limit.budget),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Contended(_)
            | Self::LedgerUnavailable
            | Self::LogUnwritable
            | Self::NotReady
            | Self::ModelUnavailable { .. } => Retry::Soon,
            _ => Retry::Never,
        }
    }

    fn openai(&self, request_id: &str) -> String {
        let mut plimsoll = json!({"requestId": request_id});
        if let Some(budget) = self.budget() {
            plimsoll["budget"] = json!(budget.to_string());
        }
        if let Some(short) = self.short() {
            plimsoll["limit"] = json!(short.limit.limit);
            if let Some(resets) = &short.resets {
                plimsoll["resets"] = json!(resets);
            }
        }
        let kind = match self {
            Self::Invalid(_)
            | Self::TooLarge { .. }
            | Self::ModelNotFound { .. }
            | Self::UnknownPath { .. } => "invalid_request_error",
            _ => self.code(),
        };
        json!({"error": {"type": kind, "code": self.code(), "message": self.message(), "plimsoll": plimsoll}})
            .to_string()
    }

    fn message(&self) -> String {
        match self {
            Self::Exhausted(short) => short.message(),
            Self::Contended(short) => {
                let Short { limit, contact, .. } = short.as_ref();
                format!(
                    "AIBudget {}, limit {}: what is left is held by calls in flight. Retry in {RETRY_AFTER_S} s.{}",
                    limit.budget,
                    limit.limit,
                    ask(contact.as_deref())
                )
            }
            Self::LedgerUnavailable => {
                "Plimsoll's ledger did not answer in time, and this gateway holds too little \
                 of a budget that matches. The call was not sent. Retry."
                    .to_owned()
            }
            Self::LogUnwritable => {
                "This gateway can't write its admission log (is its disk full, or read-only?), and without it a \
                 budget that matches could be overrun. The call was not sent. Retry: another gateway may serve it."
                    .to_owned()
            }
            Self::NotReady => {
                "This gateway has no policy yet: no operator has answered since it started. Retry.".to_owned()
            }
            Self::Invalid(invalid) => invalid.to_string(),
            Self::TooLarge { limit } => format!("The body has more than {limit} bytes."),
            Self::Unauthenticated => {
                "The caller is not known, and this installation serves known callers only (anonymous: Deny)."
                    .to_owned()
            }
            Self::Unbudgeted { namespace } => format!(
                "No enforcing AIBudget matches this call of namespace {namespace}, and this installation \
                 serves budgeted calls only (unbudgeted: Deny). Add an AIBudget that matches it."
            ),
            Self::Unpriced(unpriced) => unpriced.message(),
            Self::TooManyAccounts { matched } => format!(
                "{matched} limits of budgets match this call; at most {} can be kept. Merge budgets or narrow their match.",
                crate::account::MAX_ACCOUNTS
            ),
            Self::ModelNotFound { model, namespace } => format!(
                "No ModelRoute or ModelBackend serves the model \"{model}\" to namespace {namespace}."
            ),
            Self::ModelUnavailable { route } => {
                format!(
                    "ModelRoute {route} has no backend that this gateway knows. Retry; else look at its status."
                )
            }
            Self::UnknownPath { path } => format!(
                "Nothing answers to {path} here; Plimsoll serves POST /v1/chat/completions and GET /v1/models."
            ),
        }
    }
}

enum Retry {
    /// The same request will be refused again; OpenAI's SDKs would retry a 429 else.
    Never,
    /// Retry after a moment.
    Soon,
}

fn ask(contact: Option<&str>) -> String {
    contact.map_or_else(String::new, |contact| format!(" Ask {contact}."))
}

impl UnpricedCall {
    fn message(&self) -> String {
        let Self { budget, contact, backend, model, why } = self;
        let ask = ask(contact.as_deref());
        let model = repeated(model);
        match why {
            Unpriced::NoPrice => format!(
                "{model} on ModelBackend {backend} has no price; AIBudget {budget} refuses such calls \
                 (unpriced: Deny). Add spec.models[].price.{ask}"
            ),
            Unpriced::NoContext(what) => format!(
                "The cost of {what} is not bounded by the request's size, and {model} on ModelBackend {backend} \
                 has no contextTokens; AIBudget {budget} refuses such calls (unpriced: Deny). Add \
                 spec.models[].contextTokens.{ask}"
            ),
            Unpriced::BilledApart(what) => format!(
                "{what} is billed apart from {model}'s token prices; AIBudget {budget} refuses such calls \
                 (unpriced: Deny). Send the request without it.{ask}"
            ),
        }
    }
}

impl Short {
    fn message(&self) -> String {
        let Self { limit, used, amount, reserve, resets: at, contact } = self;
        let (used_text, amount_text) = (show(limit.unit, *used), show(limit.unit, *amount));
        let mut text =
            format!("AIBudget {}, limit {}: {used_text} of {amount_text} used", limit.budget, limit.limit);
        if reserve > amount && used < amount {
            let may_take = show(limit.unit, *reserve);
            text += &format!(
                "; this call may take {may_take} and never fits: lower max_tokens, n or the prompt."
            );
            return text + &ask(contact.as_deref());
        }
        if used < amount {
            text += &format!("; this call may take {}", show(limit.unit, *reserve));
        }
        text.push('.');
        if let Some(at) = at {
            text += &format!(" Resets {at}.");
        }
        text + &ask(contact.as_deref())
    }
}

/// `$12.50`, `1200 tokens`, `3 requests`.
fn show(unit: Unit, amount: Amount) -> String {
    match unit {
        Unit::Usd => format!("${}", unit.show(amount)),
        Unit::Tokens => format!("{} tokens", unit.show(amount)),
        Unit::Requests => format!("{} requests", unit.show(amount)),
    }
}
