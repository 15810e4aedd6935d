//! The operator as a process: what starts, in which order, and how it ends.

use crate::config::{Config, ConfigError};
use crate::controller::{self, Inputs, Parts};
use crate::gateway::Discovery;
use crate::http::{self, Health, Pages};
use crate::ledger::{self, ServerSettings, SqliteStore, Store};
use crate::metrics::Metrics;
use crate::report::{Report, Sink};
use crate::source::Source;
use anyhow::{Context, anyhow, bail};
use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::{Body, Budget, PolicyKey};
use plimsoll_core::window::WindowSpec;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// How often the settings file is looked at.
const CONFIG_EVERY: Duration = Duration::from_secs(1);

/// How long the servers may take to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Serves until `stop` resolves; then takes no new stream, commits what has arrived and ends.
///
/// # Errors
/// Says what could not be read, bound or opened, and what to do.
pub async fn run<S, K>(
    config_file: PathBuf,
    source: S,
    sink: K,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()>
where
    S: Source + Send + 'static,
    K: Sink + 'static,
{
    let config = Config::load(&config_file)?;
    let store = SqliteStore::open(&config.ledger.sqlite.path).await?;
    let remembered = remembered(&store).await?;
    let http = config.listen.http;
    let taken = || format!("can't listen on {http}; set listen.http to a free address");
    let http_listener = TcpListener::bind(http).await.with_context(taken)?;
    let settings = ServerSettings {
        listen: config.listen.grpc,
        transport: config.transport(),
        ride_through_ms: config.ride_through.ms,
        lost_after_ms: plimsoll_plan::GIVEN_UP_AFTER_MS,
    };
    if config.plain_text {
        tracing::warn!(
            "plainText: true; whoever reaches the gateways' ports can read keys and spend budgets"
        );
    }
    let discovery = Arc::new(Discovery::default());
    let services = tonic::service::Routes::new(discovery.service(settings.transport.clone()));
    let ledger = ledger::start_beside(settings, store, services).await?;
    let health = Arc::new(Health::default());
    let latest = watch::Sender::new(Arc::new(Report::default()));

    let (stopping, stopped) = watch::channel(false);
    let ended = || {
        let mut stopped = stopped.clone();
        async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }
    };
    let metrics = Metrics::default();
    let pages = Pages {
        health: Arc::clone(&health),
        report: latest.subscribe(),
        ledger: ledger.state(),
        metrics: Arc::new(registry(&ledger, &metrics, &sink)),
    };
    let http_address = http_listener.local_addr()?;
    let http_server = tokio::spawn(
        axum::serve(http_listener, http::router(pages)).with_graceful_shutdown(ended()).into_future(),
    );
    let (into, batches) = mpsc::channel(16);
    let places = source.places();
    let (settings, told) = watch::channel(config.settings());
    let mut source = tokio::spawn(source.run(into, told));
    let (news, configs) = mpsc::channel(1);
    let config_watch = tokio::spawn(watch_config(config_file.clone(), news));
    tracing::info!(grpc = %ledger.address(), http = %http_address, "serving");

    let parts = Parts {
        ledger: ledger.clone(),
        discovery: Arc::clone(&discovery),
        config: (config_file, config),
        remembered,
        places,
        sink,
        latest,
        health,
        metrics,
        salt: salt()?,
        settings,
    };
    let mut controller = tokio::spawn(controller::run(parts, Inputs { batches, configs }, stopped.clone()));
    let outcome = tokio::select! {
        () = stop => Ok(()),
        ended = &mut source => sourced(ended),
        ended = &mut controller => match ended {
            // It ends when the source does, and the source knows why.
            Ok(()) => match tokio::time::timeout(END_WITHIN, &mut source).await {
                Ok(ended) => sourced(ended),
                Err(_) => Err(anyhow!("the controller ended")),
            },
            Err(error) => Err(error.into()),
        },
    };
    tracing::info!("stopping");
    discovery.stop();
    stopping.send_replace(true);
    source.abort();
    config_watch.abort();
    ledger.shutdown().await;
    if let Err(error) = wait(http_server).await {
        tracing::warn!(%error, "the HTTP server did not end well");
    }
    if !controller.is_finished() {
        let _ = tokio::time::timeout(END_WITHIN, controller).await;
    }
    outcome
}

/// What budgets were in force before this process.
async fn remembered(store: &impl Store) -> anyhow::Result<BTreeMap<ObjectName, Budget>> {
    let mut budgets = BTreeMap::new();
    for object in store.remembered().await? {
        let Body::Budget(body) = object.decode()? else { continue };
        let windows = body.limits.iter().map(|limit| limit.window.parse::<WindowSpec>());
        if windows.into_iter().any(|window| window.is_err()) {
            bail!(
                "{}: what is remembered of {} is not understood by this build; run the newer build",
                store.path().display(),
                object.key
            );
        }
        if let PolicyKey::Budget(name) = object.key {
            budgets.insert(name, body);
        }
    }
    Ok(budgets)
}

/// Why the source ended, which it never should.
fn sourced(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    ended??;
    Err(anyhow!("the source of objects ended"))
}

async fn wait<E>(server: tokio::task::JoinHandle<Result<(), E>>) -> anyhow::Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    Ok(tokio::time::timeout(END_WITHIN, server).await.context("not within 5 s")???)
}

fn registry(ledger: &ledger::LedgerHandle, metrics: &Metrics, sink: &impl Sink) -> Registry {
    let mut registry = Registry::default();
    ledger.metrics().register(&mut registry);
    metrics.register(&mut registry);
    sink.register(&mut registry);
    let build = Gauge::<i64>::default();
    build.set(1);
    let version = ("version".into(), env!("CARGO_PKG_VERSION").into());
    registry.sub_registry_with_label(version).register("plimsoll_build", "The operator's version", build);
    registry
}

fn salt() -> std::io::Result<[u8; 16]> {
    use std::io::Read;
    let mut salt = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut salt)?;
    Ok(salt)
}

/// Sends what the settings file says whenever that changes. It is read again and again: a mounted
/// ConfigMap is swapped by links, which no notice tells about reliably.
async fn watch_config(file: PathBuf, news: mpsc::Sender<Result<Config, ConfigError>>) {
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|error| error.to_string());
    let mut last = read(&file);
    loop {
        tokio::time::sleep(CONFIG_EVERY).await;
        let now = read(&file);
        if now == last {
            continue;
        }
        last.clone_from(&now);
        let config = match now {
            Ok(text) => Config::parse(&text, &file.display().to_string()),
            Err(error) => Err(ConfigError {
                place: file.display().to_string(),
                message: format!("can't be read: {error}"),
            }),
        };
        if news.send(config).await.is_err() {
            return;
        }
    }
}
