//! The provider's HTTP: connections, paths, credentials. What is answered stands in `answer`.

use super::answer::{AnswerBody, Events, Open};
use super::ask::{self, Ask, Fault, Malformed};
use super::{Provider, Seen};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;

const REQUEST_ID: &str = "x-request-id";

pub(super) async fn serve(
    provider: Arc<Provider>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let mut stop = pin!(stop);
    let (ended, end) = tokio::sync::watch::channel(());
    loop {
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, say: what is open goes on, and closes some.
                    eprintln!("no connection accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        stream.set_nodelay(true)?;
        let provider = provider.clone();
        let mut end = end.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(provider.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A client that goes away is its own affair; the bill has noted it.
                _gone = connection => {}
                _ended = end.changed() => {}
            }
        });
    }
    drop(ended);
    Ok(())
}

async fn answer(
    provider: Arc<Provider>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let (head, body) = request.into_parts();
    let text = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
    match (&head.method, head.uri.path()) {
        (&Method::POST, path) if path.ends_with("/chat/completions") => {}
        (&Method::GET, "/bill") => return Ok(plain("application/json", provider.bill.json())),
        (&Method::GET, "/bill/total") => {
            let total = serde_json::to_vec(&provider.bill.total()).unwrap_or_default();
            return Ok(plain("application/json", total));
        }
        (&Method::GET, "/healthz") => return Ok(plain("text/plain", b"ok\n".to_vec())),
        (&Method::GET, path) if path.ends_with("/models") => {
            return Ok(plain("application/json", models(&provider)));
        }
        (method, path) => {
            let why = format!(
                "no such page: {method} {path}; there are POST /v1/chat/completions, GET /v1/models, GET /bill, GET /bill/total, GET /healthz"
            );
            return Ok(refuse(StatusCode::NOT_FOUND, "invalid_request_error", "not_found", &why));
        }
    }
    let call = provider.calls.fetch_add(1, Ordering::Relaxed);
    let request_id = text(REQUEST_ID).map_or_else(|| format!("sim-{call}"), str::to_owned);
    if let Some(key) = &provider.settings.api_key {
        let given = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        if given.strip_prefix(b"Bearer ") != Some(key.as_bytes()) {
            let why = "the API key is not this provider's; send it as authorization: Bearer <key>";
            return Ok(named(
                refuse(StatusCode::UNAUTHORIZED, "invalid_request_error", "invalid_api_key", why),
                &request_id,
            ));
        }
    }
    let body = match Limited::new(body, provider.settings.max_body).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let why = format!("the body is larger than {} bytes", provider.settings.max_body);
            return Ok(refuse(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "too_large", &why));
        }
        Err(error) => {
            let why = format!("the body broke off: {error}");
            return Ok(refuse(StatusCode::BAD_REQUEST, "invalid_request_error", "bad_body", &why));
        }
    };
    if text("x-sim-keep").is_some() {
        keep(&provider, &head, &body);
    }
    let ask = match ask::read(&body, text, request_id.clone(), call, &provider.settings) {
        Ok(ask) => Arc::new(ask),
        Err(Malformed(why)) => {
            let refusal = refuse(StatusCode::BAD_REQUEST, "invalid_request_error", "bad_body", &why);
            return Ok(named(refusal, &request_id));
        }
    };
    drop(body);
    Ok(named(complete(provider, ask).await, &request_id))
}

async fn complete(provider: Arc<Provider>, ask: Arc<Ask>) -> Response<AnswerBody> {
    if let Fault::Fail(status) = ask.fault {
        tokio::time::sleep(ask.first_token).await;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = refuse(status, "server_error", "simulated", "this failure was asked for");
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        return response;
    }
    // From here on the call is billed, even if hyper drops this future because the client went away.
    let open = Open::new(provider, ask.clone());
    let mut response = if ask.stream {
        let mut response = Response::new(AnswerBody::Events(Box::new(Events::new(open))));
        response.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache"));
        response
    } else {
        let tokens = u32::try_from(ask.output_tokens).unwrap_or(u32::MAX);
        let pause = ask.first_token + ask.per_token * tokens;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Response::new(super::answer::json(open))
    };
    let kind = if ask.stream { "text/event-stream; charset=utf-8" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn named(mut response: Response<AnswerBody>, request_id: &str) -> Response<AnswerBody> {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn plain(kind: &'static str, body: Vec<u8>) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Some(Bytes::from(body))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn refuse(status: StatusCode, kind: &str, code: &str, why: &str) -> Response<AnswerBody> {
    let error = serde_json::json!({"error": {"message": why, "type": kind, "param": null, "code": code}});
    let mut response = plain("application/json", error.to_string().into_bytes());
    *response.status_mut() = status;
    response
}

fn models(provider: &Provider) -> Vec<u8> {
    let models: Vec<_> = provider
        .settings
        .prices
        .models()
        .map(|id| serde_json::json!({"id": id, "object": "model", "created": 0, "owned_by": "plimsoll-sim"}))
        .collect();
    serde_json::json!({"object": "list", "data": models}).to_string().into_bytes()
}

fn keep(provider: &Provider, head: &hyper::http::request::Parts, body: &Bytes) {
    let value = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let seen = Seen {
        line: format!("{} {}", head.method, head.uri),
        headers: head.headers.iter().map(|(name, v)| (name.to_string(), value(v))).collect(),
        body: body.clone(),
    };
    *provider.last_request.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(seen);
}
