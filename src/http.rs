//! Health, readiness, metrics and status by HTTP. No authentication: bind it where only the cluster,
//! or only this machine, can reach it. Nothing here holds keys, prompts or users.

use crate::report::{Report, table};
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A loop that was silent for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// Whether the operator lives, and whether it is ready.
#[derive(Debug)]
pub struct Health {
    beat: Mutex<Instant>,
    planned: AtomicBool,
    /// What the first plan waits for.
    waits_for: Mutex<Vec<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            beat: Mutex::new(Instant::now()),
            planned: AtomicBool::new(false),
            waits_for: Mutex::default(),
        }
    }
}

impl Health {
    /// The controller's loop goes round.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The first plan is in force.
    pub fn set_planned(&self) {
        self.planned.store(true, Ordering::Release);
    }

    /// The first plan waits for these to be mended.
    pub fn wait_for(&self, faults: Vec<String>) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    fn lives(&self) -> bool {
        !self.planned.load(Ordering::Acquire)
            || self.beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < HANGS_AFTER
    }
}

/// What is served.
#[derive(Clone, Debug)]
pub struct Pages {
    /// Liveness and readiness.
    pub health: Arc<Health>,
    /// The latest report.
    pub report: watch::Receiver<Arc<Report>>,
    /// How the ledger is.
    pub ledger: watch::Receiver<crate::ledger::LedgerState>,
    /// All metrics.
    pub metrics: Arc<Registry>,
}

/// The pages.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(pages)
}

async fn healthz(State(pages): State<Pages>) -> Response {
    if pages.health.lives() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the controller's loop hangs\n").into_response()
}

async fn readyz(State(pages): State<Pages>) -> Response {
    use crate::ledger::LedgerState;
    let not = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response();
    if !pages.health.planned.load(Ordering::Acquire) {
        let faults = pages.health.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = faults.iter().map(|fault| format!("\n{fault}")).collect::<String>();
        return not(&format!("the first plan is not in force yet{why}"));
    }
    let state = pages.ledger.borrow().clone();
    match state {
        // A ledger that went back must be reachable: it waits for gateways to say Hello.
        LedgerState::Serving | LedgerState::WentBack => "ok\n".into_response(),
        LedgerState::Failed { why } => not(&why),
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &pages.metrics).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn status(State(pages): State<Pages>, RawQuery(query): RawQuery) -> Response {
    let report = Arc::clone(&pages.report.borrow());
    match query.as_deref() {
        None => axum::Json(&*report).into_response(),
        Some("format=table") => table::render(report.rows(), report.time).into_response(),
        Some(_) => (StatusCode::BAD_REQUEST, "write /status or /status?format=table\n").into_response(),
    }
}
