//! When the client has failed: the one thing that must not happen in silence. Calls that wait for it end, new ones
//! are refused, and the gateway is out of service until it is restarted.

use super::READ_LOG;
use crate::abi::{self, Level};
use crate::process::Shared;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// Runs the client as a task of its own: a panic ends that, not the thread.
pub(super) async fn outlive(shared: &Shared, client: impl Future<Output = ()> + Send + 'static) {
    if tokio::spawn(client).await.is_err() || !shared.finishing.load(Relaxed) {
        strand(shared).await;
    }
}

/// The client has failed: nobody will answer a pause or read the log. What a budget matches is refused, the
/// log is kept for the next start.
async fn strand(shared: &Shared) {
    shared.closing.store(true, SeqCst);
    shared.stranded.store(true, Relaxed);
    shared.metrics.connected.set(0);
    abi::log(
        Level::Error,
        "plimsoll: the client has failed; calls that a budget matches are refused until this gateway is restarted. \
         Please report it",
    );
    while !shared.finishing.load(Relaxed) {
        // Calls that were counted before it was closing may still pause.
        shared.gateway.end_pauses();
        for id in shared.gateway.wakes() {
            shared.waiters.wake(id);
        }
        tokio::time::sleep(READ_LOG).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use plimsoll_core::account::{Charge, LimitKey, Unit};
    use plimsoll_core::gateway::{Admission, Resumed};
    use plimsoll_core::ids::{ObjectName, UnixMs};
    use plimsoll_core::policy::Bounds;

    #[test]
    fn a_client_that_panics_ends_every_pause_and_takes_its_gateway_out_of_service() {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "gatewayId": "g", "logDirectory": dir.path(), "operators": ["127.0.0.1:1"], "plainText": true,
        });
        let config = Config::read(config.to_string().as_bytes()).unwrap();
        let shared = crate::process::share(config).unwrap();
        let limit = LimitKey::new(
            ObjectName::new("finance", "all"),
            "total".into(),
            Unit::Requests,
            "Total@UTC".into(),
        );
        let always = Bounds { start: UnixMs(0), end: UnixMs::NEVER };
        shared.gateway.set_policy([limit.clone()], [("Total@UTC".to_owned(), vec![always])]);
        let (limits, reserve) = ([limit], Charge { requests: 1, ..Charge::default() });
        assert!(matches!(shared.gateway.admit(&limits, &reserve, UnixMs(1)), Admission::Short));
        let id = shared.gateway.pause(&limits, &reserve, UnixMs(1), UnixMs(1));

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let failed = outlive(&shared, async { std::panic::resume_unwind(Box::new("a client")) });
            let seen = async {
                let ended = loop {
                    if let Some(resumed) = shared.gateway.resume(id) {
                        break resumed;
                    }
                    tokio::task::yield_now().await;
                };
                assert!(matches!(ended, Resumed::Unanswered), "{ended:?}");
                assert!(shared.not_ready().unwrap().contains("client has failed"));
                assert!(shared.count().is_none(), "nothing is admitted any more");
                shared.finishing.store(true, Relaxed);
            };
            tokio::join!(failed, seen);
        });
    }
}
