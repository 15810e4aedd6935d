//! A model provider that speaks OpenAI's Chat Completions and keeps its own bill.
//!
//! It answers with filler text of the length that the request asks for, at the pace and with the faults
//! that its settings, or the request's own `x-sim-*` headers, name. It is not a model.
//!
//! Prompt tokens are the UTF-8 bytes of all messages' texts (`content`, or the `text` parts of it)
//! divided by 4, rounded up. Output tokens are those asked for (`x-sim-output-tokens`, else
//! `metadata.sim_output_tokens`, else the setting), at most `max_completion_tokens` or `max_tokens`,
//! for each of `n` choices; what would be too much for memory is answered with a 400.

mod answer;
mod ask;
mod serve;

use crate::bill::Bill;
use crate::price::Prices;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the `usage` of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageSaid {
    /// What is billed.
    Right,
    /// Nothing: the field is absent (in a stream: null throughout).
    Missing,
    /// Half of the output that is billed.
    Wrong,
}

/// What is billed of a call whose client went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// The whole answer, as OpenAI bills.
    ToTheEnd,
    /// The prompt and what was sent.
    WhatWasSent,
}

/// How often a fault strikes, in calls of a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(pub u32);

/// How the provider behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its rates; models without rates are served and billed 0.
    pub prices: Prices,
    /// If set, every call must carry `authorization: Bearer <key>`.
    pub api_key: Option<String>,
    /// Output tokens where the request asks for none.
    pub output_tokens: u64,
    /// From the request to the first token.
    pub first_token: Duration,
    /// From each token to the next.
    pub per_token: Duration,
    /// Tokens in one event of a stream.
    pub tokens_per_event: u64,
    /// Calls that fail with `fail_status`, unbilled.
    pub fail: Rate,
    /// The status of those.
    pub fail_status: u16,
    /// Answers that break off half-way.
    pub truncate: Rate,
    /// Answers without usage.
    pub missing_usage: Rate,
    /// Answers with half the output in `usage`.
    pub wrong_usage: Rate,
    /// Part of every prompt that comes from the cache, in percent.
    pub cached_percent: u64,
    /// Part of every output that is reasoning, in percent.
    pub reasoning_percent: u64,
    /// What an abandoned call costs.
    pub disconnect: Disconnect,
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// Seeds the draws of faults.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prices: Prices::default(),
            api_key: None,
            output_tokens: 64,
            first_token: Duration::ZERO,
            per_token: Duration::ZERO,
            tokens_per_event: 8,
            fail: Rate(0),
            fail_status: 500,
            truncate: Rate(0),
            missing_usage: Rate(0),
            wrong_usage: Rate(0),
            cached_percent: 0,
            reasoning_percent: 0,
            disconnect: Disconnect::ToTheEnd,
            max_body: 64 << 20,
            seed: 1,
        }
    }
}

/// A provider's state, shared by its connections.
#[derive(Debug)]
pub struct Provider {
    settings: Settings,
    bill: Bill,
    calls: AtomicU64,
    last_request: std::sync::Mutex<Option<Seen>>,
}

/// A request as it arrived, for tests that compare bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `POST /v1/chat/completions`.
    pub line: String,
    /// Names (lower case) and values in the order of arrival.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: bytes::Bytes,
}

impl Provider {
    /// A provider that serves nothing yet.
    #[must_use]
    pub fn new(settings: Settings, bill: Bill) -> Arc<Self> {
        Arc::new(Self { settings, bill, calls: AtomicU64::new(0), last_request: std::sync::Mutex::new(None) })
    }

    /// Its bill.
    pub fn bill(&self) -> &Bill {
        &self.bill
    }

    /// The last request that carried the header `x-sim-keep`.
    pub fn last_request(&self) -> Option<Seen> {
        self.last_request.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Calls so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Serves on `listener` until `stop` resolves; open connections end with it.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn serve(
        self: Arc<Self>,
        listener: tokio::net::TcpListener,
        stop: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        serve::serve(self, listener, stop).await
    }

    /// Serves on a thread of its own, on a port of 127.0.0.1 that the kernel picks.
    ///
    /// # Errors
    /// When no thread or port can be had.
    pub fn start(self: Arc<Self>) -> std::io::Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Bound here, without the runtime: the caller may be inside another one.
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let provider = self.clone();
        let thread = std::thread::Builder::new().name("provider".into()).spawn(move || {
            let stopped = async {
                // An error means that `Running` is gone, which ends the provider too.
                let _gone = stopped.await;
            };
            runtime
                .block_on(async { self.serve(tokio::net::TcpListener::from_std(listener)?, stopped).await })
        })?;
        Ok(Running { provider, address, stop: Some(stop), thread: Some(thread) })
    }
}

/// A provider on a thread of its own; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    /// The provider.
    pub provider: Arc<Provider>,
    /// Where it listens.
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl Running {
    /// Its base URL, `http://127.0.0.1:PORT/v1`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ended = thread.join();
        }
    }
}
