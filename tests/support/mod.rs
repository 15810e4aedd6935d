//! The loop on real parts, for tests: provider, operator, gateways, traffic, and the comparison after it.

#![allow(dead_code, reason = "each test binary uses a part")]

use plimsoll::ledger::Export;
use plimsoll_core::account::{AccountKey, Amount, LimitKey, Unit};
use plimsoll_core::judge::{Amounts, judge};
use plimsoll_core::protocol::{Outcome, UsageRow};
use plimsoll_sim::bill::{self, Bill, Line};
use plimsoll_sim::harness::kubernetes::ControlPlane;
use plimsoll_sim::harness::stack::{Settings, Stack};
use plimsoll_sim::harness::{build, wait_until};
use plimsoll_sim::price::Prices;
use plimsoll_sim::provider::{self, Provider, Running};
use plimsoll_sim::replay::{MaxTokens, Pace, Plan, Progress, Report, Stop, replay};
use plimsoll_sim::trace::Call;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// One loop at a time: two cores.
static TURN: Mutex<()> = Mutex::new(());

/// A provider, an operator and gateways on a directory of their own.
pub struct Loop {
    pub stack: Stack,
    pub provider: Running,
    pub runtime: tokio::runtime::Runtime,
    /// Where the operator's objects are, unless they are files.
    pub plane: Option<ControlPlane>,
    _turn: MutexGuard<'static, ()>,
    _dir: TempDir,
}

/// What a model costs at the provider and in the manifests: USD per million tokens.
pub const PRICES: &str = "sim-large=5,0.5,20";

/// A backend for the provider at `base_url`, and a route to it.
pub fn backend(base_url: &str) -> String {
    format!(
        "apiVersion: plimsoll.dev/v1alpha1\n\
         kind: ModelBackend\n\
         metadata: {{name: sim, namespace: plimsoll-system}}\n\
         spec:\n\
         \x20 provider: {{api: OpenAI, baseURL: \"{base_url}\", apiKeySecretRef: {{name: sim, key: key}}}}\n\
         \x20 models:\n\
         \x20 - {{name: sim-large, contextTokens: 128000, maxOutputTokens: 16000,\n\
         \x20    price: {{inputPerMillion: \"5\", cachedInputPerMillion: \"0.5\", outputPerMillion: \"20\"}}}}\n\
         \x20 allowedRoutes: {{namespaces: {{from: All}}}}\n\
         ---\n\
         apiVersion: v1\n\
         kind: Secret\n\
         metadata: {{name: sim, namespace: plimsoll-system}}\n\
         stringData: {{key: the-providers-key}}\n\
         ---\n\
         apiVersion: plimsoll.dev/v1alpha1\n\
         kind: ModelRoute\n\
         metadata: {{name: assistant, namespace: finance}}\n\
         spec:\n\
         \x20 maxOutputTokens: 1000\n\
         \x20 tiers:\n\
         \x20 - name: only\n\
         \x20   backends: [{{backendRef: {{name: sim, namespace: plimsoll-system}}, model: sim-large}}]\n"
    )
}

/// A budget of one limit in USD for one feature.
pub fn budget(name: &str, amount: &str, period: &str) -> String {
    format!(
        "---\n\
         apiVersion: plimsoll.dev/v1alpha1\n\
         kind: AIBudget\n\
         metadata: {{name: {name}, namespace: finance}}\n\
         spec:\n\
         \x20 match: {{features: [{name}]}}\n\
         \x20 limits: [{{name: all, amount: \"{amount}\", window: {{period: {period}}}}}]\n"
    )
}

impl Loop {
    /// Starts everything on files, and waits until every gateway enforces every budget.
    pub fn start(gateways: usize, budgets: &str, config: &str) -> Self {
        Self::start_on(false, gateways, budgets, config)
    }

    /// The same with a real API server, to which all is applied by kubectl.
    pub fn start_in_cluster(gateways: usize, budgets: &str, config: &str) -> Self {
        Self::start_on(true, gateways, budgets, config)
    }

    fn start_on(cluster: bool, gateways: usize, budgets: &str, config: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let mut prices = Prices::default();
        prices.add(PRICES).unwrap();
        let settings = provider::Settings {
            prices,
            api_key: Some("the-providers-key".into()),
            first_token: Duration::from_millis(20),
            tokens_per_event: 32,
            ..provider::Settings::default()
        };
        let bill = Bill::open(Some(&dir.path().join("bill.jsonl"))).unwrap();
        let provider = Provider::new(settings, bill).start().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let template = root.join("filter/envoy.yaml");
        let mut stack = Stack::new(&Settings {
            dir: dir.path(),
            built: build().unwrap(),
            template: &std::fs::read_to_string(template).unwrap(),
            gateways,
            concurrency: 1,
            config: &format!("anonymous: {{action: Allow, namespace: finance}}\n{config}"),
        })
        .unwrap();
        let objects = backend(&provider.base_url()) + budgets;
        let plane = cluster.then(|| {
            let plane = ControlPlane::start(dir.path()).unwrap();
            stack.use_api_server(&plane.install(root).unwrap());
            plane.kubectl(&["create", "namespace", "finance"], "").unwrap();
            plane.kubectl(&["apply", "--filename", "-"], &objects).unwrap();
            plane
        });
        if plane.is_none() {
            stack.write("all.yaml", &objects).unwrap();
        }
        stack.start_operator().unwrap();
        stack.start_gateways().unwrap();
        let this = Self {
            stack,
            provider,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
            plane,
            _turn: turn,
            _dir: dir,
        };
        this.wait_enforced(gateways);
        this
    }

    /// Waits until all of `gateways` enforce every budget.
    pub fn wait_enforced(&self, gateways: usize) {
        self.stack
            .wait_status("every gateway enforcing every budget", |status| {
                let budgets =
                    status["budgets"].as_object().filter(|all| !all.is_empty()).ok_or("no budgets")?;
                for (name, budget) in budgets {
                    let held = &budget["gateways"];
                    if held["enforcing"] != gateways || held["total"] != gateways {
                        return Err(format!("{name} is held by {held}"));
                    }
                }
                for (name, backend) in status["backends"].as_object().into_iter().flatten() {
                    let conditions = backend["conditions"].as_array().cloned().unwrap_or_default();
                    if !conditions.iter().any(|c| c["type"] == "Programmed" && c["status"] == "True") {
                        return Err(format!("{name} is not programmed: {conditions:?}"));
                    }
                }
                Ok(())
            })
            .unwrap();
    }

    /// A plan for `calls` through all gateways.
    pub fn plan(&self, calls: Vec<Call>, pace: Pace) -> Plan {
        let targets = self.stack.urls().iter().map(|url| url.parse().unwrap()).collect();
        Plan {
            pace,
            repeat: true,
            max_tokens: MaxTokens::None,
            timeout: Duration::from_secs(60),
            ..Plan::new(Arc::new(calls), targets)
        }
    }

    /// Sends in the background; `stop` ends it.
    pub fn send(&self, plan: Plan) -> (Stop, Arc<Progress>, tokio::task::JoinHandle<Report>) {
        let (stop, progress) = (Stop::default(), Arc::new(Progress::default()));
        let task = self.runtime.spawn(replay(plan, stop.clone(), progress.clone(), |_| {}));
        (stop, progress, task)
    }

    /// Waits until the ledger has heard everything, stops it all, and reads the books.
    pub fn close(self) -> Books {
        let Self { stack, provider, runtime, plane: _plane, _turn, _dir } = self;
        let ledger = stack.ledger();
        let metric = |page: &str, name: &str| -> u64 {
            let lines = page.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        let mut messages = 0;
        wait_until("every call's row in the ledger", Duration::from_secs(60), || {
            messages = 0;
            for gateway in stack.gateways() {
                let page = plimsoll_sim::harness::http::get(("127.0.0.1", gateway.metrics), "/metrics");
                let page = page.map_err(|error| error.to_string())?.body;
                messages += metric(&page, "plimsoll_gateway_ledger_sent_total");
                let (sent, stored) = (
                    metric(&page, "plimsoll_gateway_sent_total"),
                    metric(&page, "plimsoll_gateway_settled_total"),
                );
                if sent != stored {
                    return Err(format!("{} sent {sent} calls, {stored} are settled", gateway.id));
                }
                // After an outage a log is long: a clean end would leave its rest for the next start.
                let unstored = metric(&page, "plimsoll_gateway_log_unstored");
                if unstored != 0 {
                    return Err(format!(
                        "{} has {unstored} records that the ledger has not stored",
                        gateway.id
                    ));
                }
                if metric(&page, "plimsoll_gateway_ledger_connected") != 1 {
                    return Err(format!("{} is not connected to the ledger", gateway.id));
                }
            }
            Ok(())
        })
        .unwrap();
        drop(stack);
        let export = runtime.block_on(plimsoll::ledger::export(&ledger)).unwrap();
        let discrepancies = runtime.block_on(plimsoll::ledger::sqlite::check(&ledger)).unwrap();
        assert!(discrepancies.is_empty(), "rows and balances differ: {discrepancies:?}");
        Books { export, bill: provider.provider.bill().lines(), messages }
    }
}

/// The ledger's books and the provider's bill, after everything has ended.
pub struct Books {
    pub export: Export,
    pub bill: Vec<Line>,
    pub messages: u64,
}

/// One budget's numbers.
#[derive(Debug, Default)]
pub struct Figures {
    pub amount: i64,
    pub charged: i64,
    pub billed: i64,
    pub requests: usize,
    pub refused: usize,
    pub wrong: usize,
}

impl Books {
    pub fn rows(&self) -> impl Iterator<Item = &UsageRow> {
        self.export.rows.iter().map(|(_, row)| row)
    }

    /// Every billed call is known, every completed one charged to the nano-dollar, no call twice, and no call
    /// charged less than its bill.
    pub fn check_bill(&self) {
        let billed = bill::by_request(&self.bill);
        let mut seen = HashSet::new();
        for row in self.rows() {
            assert!(seen.insert((&row.request_id, row.attempt)), "{} is charged twice", row.request_id);
            let bill = billed.get(row.request_id.as_str()).copied().unwrap_or(0);
            if row.outcome == Outcome::Completed {
                assert_eq!(row.charge.usd.0, bill, "{} is not charged as billed", row.request_id);
            } else {
                assert!(
                    row.charge.usd.0 >= bill,
                    "{} {:?} is charged less than billed",
                    row.request_id,
                    row.outcome
                );
            }
        }
        let known: HashSet<&str> = self.rows().map(|row| row.request_id.as_str()).collect();
        let lost: Vec<_> = billed.keys().filter(|id| !known.contains(*id)).collect();
        assert!(lost.is_empty(), "{} billed calls are not in the ledger, say {:?}", lost.len(), lost.first());
        assert!(self.rows().any(|row| row.outcome == Outcome::Completed), "no call was completed");
    }

    /// By budget, for amounts in nano-dollars; asserts that nothing is overspent.
    pub fn budgets(&self, amounts: &[(&str, i64)]) -> BTreeMap<String, Figures> {
        let billed: HashMap<&str, i64> = bill::by_request(&self.bill);
        let mut lines: BTreeMap<String, Figures> = BTreeMap::new();
        let amount_of = |account: &AccountKey| {
            let name = account.limit.budget.name.as_str();
            (account.limit.unit == Unit::Usd).then(|| amounts.iter().find(|(of, _)| *of == name)).flatten()
        };
        for row in self.rows() {
            for account in &row.accounts {
                let Some((name, amount)) = amount_of(account) else { continue };
                let line = lines.entry((*name).to_owned()).or_default();
                line.amount = *amount;
                line.charged += row.charge.usd.0;
                line.billed += billed.get(row.request_id.as_str()).copied().unwrap_or(0);
                line.requests += 1;
            }
        }
        let limits: BTreeMap<LimitKey, Amount> = self
            .rows()
            .flat_map(|row| &row.accounts)
            .filter_map(|account| Some((account.limit.clone(), Amount(amount_of(account)?.1))))
            .collect();
        let rows: Vec<UsageRow> = self.rows().cloned().collect();
        let decisions: Vec<_> = self.export.decisions.iter().map(|(_, decision)| decision.clone()).collect();
        let judged = judge(&rows, &decisions, &Amounts::constant(limits));
        for decision in &decisions {
            if let Some((name, _)) = decision.account.as_ref().and_then(amount_of) {
                let line = lines.entry((*name).to_owned()).or_default();
                line.refused += 1;
                line.requests += 1;
            }
        }
        for wrong in &judged.wrong {
            if let Some((name, _)) = amount_of(&wrong.account) {
                lines.entry((*name).to_owned()).or_default().wrong += 1;
            }
        }
        for (name, line) in &lines {
            assert!(line.charged <= line.amount, "{name} is overspent by the ledger: {line:?}");
            assert!(line.billed <= line.amount, "{name} is overspent at the provider: {line:?}");
        }
        lines
    }
}
