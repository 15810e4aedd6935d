//! One call over HTTP/1.1: its bytes, its connection, and what of the answer is kept.
//!
//! Connections are kept open and reused, last used first. An answer's text is measured and dropped;
//! kept are its status, ids, error code and usage.

use super::{MaxTokens, Plan};
use crate::trace::Call;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Where calls go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The base URL, `http://127.0.0.1:8080`.
    pub url: Arc<str>,
    address: String,
    path: String,
}

/// A URL that is no target.
#[derive(Debug, thiserror::Error)]
#[error(
    "\"{0}\" is not a target; write it like http://127.0.0.1:10000 or http://gateway:8080/v1 (plain HTTP)"
)]
pub struct TargetError(String);

impl std::str::FromStr for Target {
    type Err = TargetError;

    fn from_str(url: &str) -> Result<Self, TargetError> {
        let bad = || TargetError(url.to_owned());
        let uri: hyper::Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
        let port = authority.port_u16().unwrap_or(80);
        let prefix = uri.path().trim_end_matches('/');
        let path = match prefix {
            "" => "/v1/chat/completions".to_owned(),
            given if given.ends_with("/completions") => given.to_owned(),
            given => format!("{given}/chat/completions"),
        };
        Ok(Self { url: url.into(), address: format!("{}:{port}", authority.host()), path })
    }
}

/// How a call ended, as the client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The answer arrived whole, whatever its status.
    Completed,
    /// No connection, or it broke before the answer's head.
    NoAnswer,
    /// It broke in the answer.
    BrokenOff,
    /// This client went away, as planned.
    Abandoned,
    /// This client's patience ended.
    TimedOut,
}

/// Tokens that an answer states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Of the output.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// What is kept of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// How it ended.
    pub end: End,
    /// HTTP's status; 0: none came.
    pub status: u16,
    /// `x-request-id` of the answer.
    pub request_id: Option<String>,
    /// `error.code` of a refusal.
    pub code: Option<String>,
    /// `x-plimsoll-budget` of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
    /// `x-plimsoll-limit` of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The usage that the answer states.
    pub usage: Option<Usage>,
    /// Bytes of the answer's body.
    pub bytes: u64,
    #[serde(skip)]
    pub(super) first_byte: Option<Instant>,
}

impl Said {
    pub(super) fn ended(end: End) -> Self {
        Self {
            end,
            status: 0,
            request_id: None,
            code: None,
            budget: None,
            limit: None,
            usage: None,
            bytes: 0,
            first_byte: None,
        }
    }
}

/// One call and its answer: a line of `--answers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Counts the calls from 0.
    pub number: u64,
    /// When it was due, in milliseconds of the replay.
    pub due_ms: u64,
    /// Where it went.
    pub target: Arc<str>,
    /// The call's feature.
    pub feature: Arc<str>,
    /// The call's user.
    pub user: Arc<str>,
    /// The call's model.
    pub model: Arc<str>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// From due to the answer's last byte, in microseconds.
    pub latency_us: u64,
    /// From due to the body's first byte, in microseconds.
    pub first_byte_us: Option<u64>,
    /// What came.
    #[serde(flatten)]
    pub said: Said,
}

/// Filler that prompts of all sizes are cut from.
#[derive(Debug)]
pub struct Prompt(String);

/// The largest prompt, in bytes.
const MAX_PROMPT: usize = 16 << 20;

impl Default for Prompt {
    fn default() -> Self {
        Self("What may this ship carry in winter, in salt water, so late in the year? ".repeat(16_384))
    }
}

impl Prompt {
    fn write(&self, into: &mut String, tokens: u64) {
        let mut bytes = usize::try_from(tokens.saturating_mul(4)).unwrap_or(MAX_PROMPT).min(MAX_PROMPT);
        while bytes > 0 {
            let part = &self.0[..bytes.min(self.0.len())];
            into.push_str(part);
            bytes -= part.len();
        }
    }
}

/// Idle connections of one target.
pub(super) struct Pool {
    target: Target,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Pool {
    pub(super) fn new(target: Target) -> Self {
        Self { target, idle: Mutex::new(Vec::new()) }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    fn idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    }

    async fn connect(&self) -> Option<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.target.address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.ok()?;
        // Its error reaches the call that it broke.
        tokio::spawn(async move { drop(connection.await) });
        Some(sender)
    }
}

/// Sends one call and reads its answer.
pub(super) async fn send(pool: &Pool, plan: &Plan, prompt: &Prompt, call: &Call, abandon: bool) -> Said {
    let body = Bytes::from(body(plan, prompt, call));
    // A kept connection may have been closed by the server meanwhile: then nothing was sent, and a new
    // one is tried, once.
    let mut kept = pool.idle();
    loop {
        let reused = kept.is_some();
        let sender = match kept.take() {
            Some(sender) => Some(sender),
            None => pool.connect().await,
        };
        let Some(mut sender) = sender else { return Said::ended(End::NoAnswer) };
        let Some(request) = request(&pool.target, plan, call, body.clone()) else {
            return Said::ended(End::NoAnswer);
        };
        match sender.try_send_request(request).await {
            Ok(response) => {
                let said = read(response, abandon).await;
                // Abandoned or broken: dropping the sender closes the connection.
                if said.end == End::Completed && sender.ready().await.is_ok() {
                    pool.keep(sender);
                }
                return said;
            }
            Err(mut unsent) => {
                if !reused || unsent.take_message().is_none() {
                    return Said::ended(End::NoAnswer);
                }
            }
        }
    }
}

fn body(plan: &Plan, prompt: &Prompt, call: &Call) -> String {
    let size = usize::try_from(call.prompt_tokens.saturating_mul(4)).unwrap_or(0).min(MAX_PROMPT);
    let mut body = String::with_capacity(size + 256);
    let model = serde_json::to_string(&*call.model).unwrap_or_default();
    let _ = write!(body, "{{\"model\":{model},\"messages\":[{{\"role\":\"user\",\"content\":\"");
    prompt.write(&mut body, call.prompt_tokens);
    body.push_str("\"}]");
    let max_tokens = match plan.max_tokens {
        MaxTokens::None => None,
        MaxTokens::Recorded => Some(call.output_tokens),
        MaxTokens::Fixed(n) => Some(n),
    };
    if let Some(max_tokens) = max_tokens {
        let _ = write!(body, ",\"max_tokens\":{max_tokens}");
    }
    if call.stream {
        body.push_str(",\"stream\":true");
        if plan.include_usage {
            body.push_str(",\"stream_options\":{\"include_usage\":true}");
        }
    }
    body.push('}');
    body
}

fn request(target: &Target, plan: &Plan, call: &Call, body: Bytes) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::post(target.path.as_str())
        .header("host", target.address.as_str())
        .header("content-type", "application/json")
        .header("x-sim-output-tokens", call.output_tokens);
    if !call.feature.is_empty() {
        request = request.header("x-plimsoll-feature", &*call.feature);
    }
    if !call.user.is_empty() {
        request = request.header("x-plimsoll-user", &*call.user);
    }
    for (name, value) in &plan.headers {
        request = request.header(name, value);
    }
    request.body(Full::new(body)).ok()
}

/// Bytes of the answer that are kept until its end: usage and error codes stand there.
const TAIL: usize = 4096;

async fn read(response: Response<Incoming>, abandon: bool) -> Said {
    let (head, mut body) = response.into_parts();
    let mut said = Said::ended(End::Completed);
    said.status = head.status.as_u16();
    said.request_id = text(&head.headers, "x-request-id");
    let events =
        text(&head.headers, "content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
    let mut tail: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            said.end = End::BrokenOff;
            return said;
        };
        let Ok(bytes) = frame.into_data() else { continue };
        said.first_byte.get_or_insert_with(Instant::now);
        said.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        tail.extend_from_slice(&bytes);
        if tail.len() > 4 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
        if abandon {
            said.end = End::Abandoned;
            return said;
        }
    }
    if !head.status.is_success() {
        said.code = code(&tail);
        said.budget = text(&head.headers, "x-plimsoll-budget");
        said.limit = text(&head.headers, "x-plimsoll-limit");
    } else if events && !tail.trim_ascii_end().ends_with(b"data: [DONE]") {
        said.end = End::BrokenOff;
    } else {
        said.usage = usage(&tail);
    }
    said
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn code(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Page {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        code: Option<String>,
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let page: Page = serde_json::from_slice(body).ok()?;
    page.error.code.or(page.error.kind)
}

/// The usage in an answer's last bytes: read from its brace on, so that neither form needs to be whole.
fn usage(tail: &[u8]) -> Option<Usage> {
    let key = b"\"usage\":{";
    let at = tail.windows(key.len()).rposition(|window| window == key)?;
    let from = &tail[at + key.len() - 1..];
    serde_json::Deserializer::from_slice(from).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_base_url_or_the_whole_path() {
        let path = |url: &str| url.parse::<Target>().map(|t| (t.address, t.path)).ok();
        let at = |address: &str, path: &str| Some((address.to_owned(), path.to_owned()));
        assert_eq!(path("http://127.0.0.1:80"), at("127.0.0.1:80", "/v1/chat/completions"));
        assert_eq!(path("http://gateway/openai/v1/"), at("gateway:80", "/openai/v1/chat/completions"));
        assert_eq!(path("http://g:1/v1/chat/completions"), at("g:1", "/v1/chat/completions"));
        assert_eq!(path("https://api.example.com"), None);
        assert_eq!(path("127.0.0.1:80"), None);
    }

    #[test]
    fn usage_is_found_at_the_end_of_both_forms() {
        let expected = Some(Usage { prompt_tokens: 3, completion_tokens: 5 });
        assert_eq!(
            usage(br#"...","usage":{"prompt_tokens":3,"completion_tokens":5,"x":{}},"z":1}"#),
            expected
        );
        assert_eq!(
            usage(b"data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n"),
            expected
        );
        assert_eq!(usage(b"data: {\"usage\":null}\n\n"), None);
    }
}
