//! The API server as the operator sees it: objects come from there ([`Kubernetes`]), statuses and Events
//! go there.
//!
//! Nothing here decides what is enforced: with the API server away the last state stays in force.

mod access;
mod apply;
mod catalogue;
mod events;
mod faults;
mod lenient;
mod metrics;
mod queue;
mod source;
mod status;
mod stored;

pub use metrics::Requests;
pub use source::Kubernetes;
pub use status::{Tasks, Writer};
pub use stored::{Fingerprint, Reported, Stored};

use anyhow::Context;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::PathBuf;
use std::time::Duration;

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// How long a connection may be silent while an answer is read: API servers send a bookmark on each watch once a
/// minute, so two of them are missing then, and the network has lost it without a word.
const READ_WITHIN: Duration = Duration::from_secs(130);

/// Which API server, and as whom.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig file; absent: `KUBECONFIG`, `~/.kube/config`, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// A context in it; absent: the current one.
    pub context: Option<String>,
}

impl Access {
    /// A client; nothing is sent yet. `requests` counts what is.
    ///
    /// # Errors
    /// The kubeconfig can't be read, or there is none and this is no pod.
    pub async fn client(&self, requests: &Requests) -> anyhow::Result<Client> {
        // One provider for everything that speaks TLS; whoever was first has installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let shown = file.display();
                let read = || format!("kubeconfig {shown} can't be used");
                let kubeconfig = Kubeconfig::read_from(file).with_context(read)?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(read)?
            }
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.context("the kubeconfig can't be used")?
            }
            None => Config::infer().await.context(
                "no API server is known; give --kubeconfig FILE, or --manifests DIR to read objects from files",
            )?,
        };
        config.connect_timeout = Some(CONNECT_WITHIN);
        config.read_timeout = Some(READ_WITHIN);
        config.reset_reader_on_write = true;
        // It would try 15 times within each request, for minutes and in silence. Who asks here has pauses of
        // its own, and says what is wrong.
        config.default_retry = false;
        let agent = concat!("plimsoll/", env!("CARGO_PKG_VERSION"));
        config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
        let client = ClientBuilder::try_from(config).context("no client can be made from the kubeconfig")?;
        Ok(client.with_layer(&requests.layer()).build())
    }
}

/// The pause after one of `last`, from the first to the longest, twice as long each time; after none the first.
fn next_pause(last: Duration, [first, longest]: [Duration; 2]) -> Duration {
    (last * 2).clamp(first, longest)
}

/// Resolves then; `None`: never.
async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
