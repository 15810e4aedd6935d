//! What kubectl does to a budget and what that does to its spend: a real API server, Envoys, and calls that
//! cost money.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use plimsoll_core::account::AccountKey;
use plimsoll_core::money::NanoUsd;
use plimsoll_sim::harness::{http, wait_until};
use std::time::Duration;
use support::{Loop, budget};

/// A call that may cost $0.02 and something, and costs about half of it.
const BODY: &str =
    r#"{"model": "assistant", "max_tokens": 1000, "messages": [{"role": "user", "content": "find it"}]}"#;
const CENT: i64 = 10_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

struct Story {
    this: Loop,
    /// Calls that were answered, each of which costs money.
    served: usize,
}

impl Story {
    fn kubectl(&self, args: &[&str], input: &str) {
        self.this.plane.as_ref().unwrap().kubectl(args, input).unwrap();
    }

    fn apply(&self, manifest: &str) {
        self.kubectl(&["apply", "--filename", "-"], manifest);
    }

    fn delete(&self, budget: &str) {
        self.kubectl(&["delete", "aibudget", budget, "--namespace=finance"], "");
    }

    /// One call for search; the status and what the body says.
    fn call(&mut self, gateway: usize) -> http::Page {
        let headers = [("content-type", "application/json"), ("x-plimsoll-feature", "search")];
        let address = ("127.0.0.1", self.this.stack.gateways()[gateway].port);
        let page = http::request(address, "POST", "/v1/chat/completions", &headers, BODY.as_bytes()).unwrap();
        assert!([200, 429].contains(&page.status), "{} {}", page.status, page.body);
        self.served += usize::from(page.status == 200);
        page
    }

    /// Calls every gateway until it refuses, and says which budget does.
    fn spend_all_of(&mut self, budget: &str) {
        for gateway in 0..self.this.stack.gateways().len() {
            let refused = (0..1000).map(|_| self.call(gateway)).find(|page| page.status == 429);
            let body = refused.unwrap_or_else(|| panic!("gateway {gateway} still serves")).body;
            assert!(
                body.contains("budget_exceeded") && body.contains(&format!("finance/{budget},")),
                "{body}"
            );
        }
    }

    /// Waits until every gateway serves again: that costs a call each.
    fn until_served(&mut self, what: &str) {
        for gateway in 0..self.this.stack.gateways().len() {
            wait_until(what, PATIENCE, || match self.call(gateway) {
                page if page.status == 200 => Ok(()),
                page => Err(page.body),
            })
            .unwrap();
        }
    }

    /// Waits until every gateway refuses again, with no money to spend meanwhile: what is charged to `budget`
    /// must stay as it is.
    fn until_refused_by(&mut self, budget: &str) {
        self.enforced(budget);
        for gateway in 0..self.this.stack.gateways().len() {
            let page = self.call(gateway);
            assert!(page.status == 429 && page.body.contains(&format!("finance/{budget},")), "{}", page.body);
        }
    }

    fn enforced(&self, budget: &str) {
        let all = self.this.stack.gateways().len();
        let held = |status: &serde_json::Value| {
            let held = &status["budgets"][format!("finance/{budget}")]["gateways"];
            if held["enforcing"] == all && held["total"] == all { Ok(()) } else { Err(held.to_string()) }
        };
        self.this.stack.wait_status("the budget at every gateway", held).unwrap();
    }

    /// What the status says of a budget's only limit, in nano-dollars.
    fn spent(&self, budget: &str) -> i64 {
        let page = self.this.stack.page("/status").unwrap();
        let status: serde_json::Value = serde_json::from_str(&page.body).unwrap();
        let spent = status["budgets"][format!("finance/{budget}")]["limits"][0]["spent"].as_str().unwrap();
        spent.parse::<NanoUsd>().unwrap().0
    }
}

#[test]
fn a_budget_deleted_renamed_moved_and_brought_back_has_spent_what_it_had_spent() {
    let all = "---\napiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\nmetadata: {name: all, namespace: finance}\n\
               spec: {limits: [{name: month, amount: 50}]}\n";
    let search = budget("search", "0.10", "Month");
    let this = Loop::start_in_cluster(2, &(all.to_owned() + &search), "");
    let mut story = Story { this, served: 0 };
    story.spend_all_of("search");

    // Deleted: it holds no call back any more. The namespace's budget goes on counting.
    story.delete("search");
    story.until_served("a call after the deletion");
    // Back, while the operator is dead and everything that is not on disk forgotten.
    story.this.stack.kill_operator();
    story.apply(&search);
    story.this.stack.start_operator().unwrap();
    story.until_refused_by("search");
    assert!(story.spent("search") > 6 * CENT, "{}", story.spent("search"));

    // Under another name it is another budget, and counts from its creation.
    story.delete("search");
    story.apply(&search.replace("name: search,", "name: seek,"));
    story.enforced("seek");
    story.until_served("a call under the new name");
    assert!(story.spent("seek") < 4 * CENT, "{}", story.spent("seek"));
    story.spend_all_of("seek");

    // In another namespace it is none of finance's.
    story.delete("seek");
    story.kubectl(&["create", "namespace", "sales"], "");
    story.apply(&search.replace("namespace: finance", "namespace: sales"));
    story.until_served("a call after the move");
    // Home again, both: as spent as they were.
    story.kubectl(&["delete", "aibudget", "search", "--namespace=sales"], "");
    story.apply(&search);
    story.until_refused_by("search");
    story.delete("search");
    story.apply(&search.replace("name: search,", "name: seek,"));
    story.until_refused_by("seek");

    let served = story.served;
    let books = story.this.close();
    books.check_bill();
    assert_eq!(books.rows().count(), served);
    let charged = |name: &str| {
        let is_of = |account: &AccountKey| account.limit.budget.to_string() == name;
        let rows = books.rows().filter(|row| row.accounts.iter().any(is_of));
        rows.map(|row| row.charge.usd.0).sum::<i64>()
    };
    let (all, search, seek) = (charged("finance/all"), charged("finance/search"), charged("finance/seek"));
    let total: i64 = books.rows().map(|row| row.charge.usd.0).sum();
    eprintln!("{served} calls, all {all}, search {search}, seek {seek}");
    assert_eq!(all, total, "the namespace's budget was there all the time");
    for spent in [search, seek] {
        assert!(spent > 6 * CENT && spent <= 10 * CENT, "{spent}");
    }
    assert_eq!(charged("sales/search"), 0);
}

#[test]
fn a_key_that_the_operator_may_read_no_more_goes_on_working_where_it_is() {
    let this = Loop::start_in_cluster(1, &budget("search", "50", "Month"), "");
    let mut story = Story { this, served: 0 };
    assert_eq!(story.call(0).status, 200);
    story.kubectl(&["delete", "role", "plimsoll-secrets", "--namespace=plimsoll-system"], "");
    story.this.stack.kill_operator();
    story.this.stack.start_operator().unwrap();
    let back = |status: &serde_json::Value| {
        let gateway = &status["gateways"]["gateway-1"];
        let conditions = status["backends"]["plimsoll-system/sim"]["conditions"].to_string();
        let holds = gateway["xds"] == true && gateway["clusters"] == 2 && gateway["ledger"] == true;
        if holds && conditions.contains("SecretForbidden") { Ok(()) } else { Err(format!("{status:#}")) }
    };
    story.this.stack.wait_status("the gateway back at an operator without the key", back).unwrap();
    // The provider answers 401 to any other key.
    assert_eq!(story.call(0).status, 200);
    let books = story.this.close();
    books.check_bill();
    assert_eq!(books.rows().count(), 2);
}

#[test]
fn operator_and_api_server_gone_at_once_cost_no_call_when_the_operator_alone_comes_back() {
    // Slices last a second, so calls go on only if the ledger grants.
    let this = Loop::start_in_cluster(1, &budget("search", "50", "Month"), "rideThrough: 1s");
    let mut story = Story { this, served: 0 };
    assert_eq!(story.call(0).status, 200);
    story.this.stack.kill_operator();
    story.this.plane.as_mut().unwrap().kill_api_server();
    story.this.stack.spawn_operator().unwrap();
    let metric = |story: &Story| {
        let port = story.this.stack.gateways()[0].metrics;
        http::get(("127.0.0.1", port), "/metrics").unwrap().body
    };
    wait_until("the gateway back at the ledger", PATIENCE, || {
        let page = metric(&story);
        let connected = page.lines().any(|line| line.starts_with("plimsoll_gateway_ledger_connected 1"));
        if connected { Ok(()) } else { Err(page) }
    })
    .unwrap();
    for _ in 0..300 {
        let page = story.call(0);
        assert_eq!(page.status, 200, "{}", page.body);
    }
    wait_until("what it waits for", PATIENCE, || {
        let page = story.this.stack.page("/readyz").map_err(|error| error.to_string())?;
        let waits = page.status == 503 && page.body.contains("the API server can't be reached");
        if waits { Ok(()) } else { Err(page.body) }
    })
    .unwrap();

    // It comes back, and with it what is declared.
    story.this.plane.as_mut().unwrap().start_api_server().unwrap();
    story.enforced("search");
    story.apply(&budget("search", "0.30", "Month"));
    story.spend_all_of("search");
    let served = story.served;
    let books = story.this.close();
    books.check_bill();
    assert_eq!(books.rows().count(), served);
}
