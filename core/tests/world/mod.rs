//! A world to break the protocol in: gateways with logs, a ledger with a store, links that lose, double,
//! delay and reorder, clocks that differ; in virtual time.
//!
//! Gateways and ledger are the real ones; what stands here is what surrounds them.

use plimsoll_core::account::{AccountKey, Amount, Charge, LimitKey, Unit};
use plimsoll_core::gateway::{Admission, Gateway, Resumed};
use plimsoll_core::ids::{Epoch, Incarnation, ObjectName, UnixMs};
use plimsoll_core::ledger::{
    Balance, EpochRecord, EpochState, Event, Ledger, Rows, Settings, StreamId, Terms,
};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::Enforcement;
use plimsoll_core::protocol::*;
use plimsoll_core::slice::Reservation;
use plimsoll_core::window::WindowSpec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const LOST_AFTER_MS: i64 = 600_000;
pub const RIDE_THROUGH_MS: i64 = 120_000;
const DELAY_MS: i64 = 25;

/// What the store keeps.
#[derive(Default)]
pub struct Store {
    pub balances: BTreeMap<AccountKey, Balance>,
    pub epochs: BTreeMap<Epoch, EpochRecord>,
    pub usage: BTreeMap<(Epoch, u64), UsageRow>,
}

/// A link's two directions: messages with the instant at which they arrive.
#[derive(Default)]
pub struct Link {
    stream: Option<StreamId>,
    greeted: bool,
    pub up: VecDeque<(i64, FromGateway)>,
    pub down: VecDeque<(i64, FromLedger)>,
    /// Not to be connected before this.
    down_until: i64,
}

pub struct Call {
    sequence: u64,
    admitted_at: i64,
    reserve: Charge,
    reservation: Option<Reservation>,
    accounts: Vec<AccountKey>,
}

impl Call {
    /// What it has reserved, in nano-dollars.
    pub fn reserve(&self) -> NanoUsd {
        self.reserve.usd
    }
}

pub struct Node {
    pub gateway: Gateway,
    pub epoch: Epoch,
    log_state: LogState,
    sequence: u64,
    /// Settled, in order.
    log: Vec<UsageRow>,
    read: usize,
    pub open: Vec<Call>,
    pub paused: Vec<(AskId, Vec<LimitKey>, Charge, i64)>,
    pub link: Link,
    skew: i64,
    replayed: bool,
}

pub struct World {
    pub now: i64,
    pub store: Store,
    ledger: Ledger,
    events: Vec<Event>,
    pub nodes: Vec<Node>,
    pub limits: BTreeMap<LimitKey, Terms>,
    next_stream: u64,
    next_epoch: u128,
    next_incarnation: u128,
    /// What providers were paid, by account.
    pub billed: BTreeMap<AccountKey, Amount>,
    /// Epochs whose log was destroyed.
    pub lost_logs: BTreeSet<Epoch>,
    /// The highest amount each limit ever had.
    pub highest: BTreeMap<LimitKey, Amount>,
    pub admitted: u64,
    pub refused: Vec<No>,
    pub unanswered: u64,
    pub messages: u64,
}

pub fn limit(name: &str, unit: Unit, window: &str) -> LimitKey {
    LimitKey::new(ObjectName::new("finance", "all"), name.into(), unit, window.into())
}

pub fn usd(nanos: i64) -> Charge {
    Charge { usd: NanoUsd(nanos), tokens: nanos.unsigned_abs(), requests: 1 }
}

fn settings() -> Settings {
    Settings { ride_through_ms: RIDE_THROUGH_MS, lost_after_ms: LOST_AFTER_MS, hmac_key: [7; 32] }
}

impl World {
    pub fn new(gateways: usize, limits: &[(LimitKey, i64)]) -> Self {
        let terms = |amount: i64| Terms {
            amount: Amount(amount),
            block_at: Amount(amount),
            enforcement: Enforcement::Enforce,
        };
        let mut world = Self {
            now: 1_764_547_200_000,
            store: Store::default(),
            ledger: Ledger::new(Incarnation(1), settings()),
            events: Vec::new(),
            nodes: Vec::new(),
            limits: limits.iter().map(|(key, amount)| (key.clone(), terms(*amount))).collect(),
            next_stream: 0,
            next_epoch: 0,
            next_incarnation: 1,
            billed: BTreeMap::new(),
            lost_logs: BTreeSet::new(),
            highest: limits.iter().map(|(key, amount)| (key.clone(), Amount(*amount))).collect(),
            admitted: 0,
            refused: Vec::new(),
            unanswered: 0,
            messages: 0,
        };
        world.events.push(Event::Limits(world.limits.clone()));
        for i in 0..gateways {
            world.next_epoch += 1;
            let epoch = Epoch(world.next_epoch);
            world.nodes.push(Node {
                gateway: Gateway::new(format!("g{i}"), epoch),
                epoch,
                log_state: LogState::New,
                sequence: 0,
                log: Vec::new(),
                read: 0,
                open: Vec::new(),
                paused: Vec::new(),
                link: Link::default(),
                skew: 0,
                replayed: true,
            });
        }
        world.send_policy();
        world.run(200);
        world
    }

    fn time(&self, node: usize) -> UnixMs {
        UnixMs(self.now + self.nodes[node].skew)
    }

    /// What a policy delta does at each gateway; it reaches all at once here.
    pub fn send_policy(&mut self) {
        for node in &self.nodes {
            node.gateway.set_ride_through(RIDE_THROUGH_MS);
            node.gateway.set_policy(
                self.limits.keys().cloned(),
                self.limits.keys().map(|key| {
                    let spec: WindowSpec = key.window.parse().unwrap();
                    (key.window.clone(), spec.ahead(UnixMs(self.now), RIDE_THROUGH_MS).bounds)
                }),
            );
        }
    }

    pub fn set_amount(&mut self, key: &LimitKey, amount: i64) {
        let terms = self.limits.get_mut(key).unwrap();
        (terms.amount, terms.block_at) = (Amount(amount), Amount(amount));
        let highest = self.highest.get_mut(key).unwrap();
        *highest = (*highest).max(Amount(amount));
        self.events.push(Event::Limits(self.limits.clone()));
        self.step();
    }

    pub fn skew(&mut self, node: usize, ms: i64) {
        self.nodes[node].skew = ms;
    }

    /// A call arrives at a gateway.
    pub fn call(&mut self, node: usize, limits: &[LimitKey], reserve: Charge) {
        let now = self.time(node);
        match self.nodes[node].gateway.admit(limits, &reserve, now) {
            Admission::Admitted(reservation) => self.leave(node, reserve, reservation),
            Admission::Short => {
                let id = self.nodes[node].gateway.pause(limits, &reserve, now, now);
                self.nodes[node].paused.push((id, limits.to_vec(), reserve, self.now));
                self.tick(node);
            }
            Admission::No(no) => self.refused.push(no),
            Admission::NoWindow(_) => self.unanswered += 1,
        }
    }

    fn leave(&mut self, node: usize, reserve: Charge, reservation: Reservation) {
        self.admitted += 1;
        let now = self.now;
        let node = &mut self.nodes[node];
        node.sequence += 1;
        let accounts = reservation.accounts().cloned().collect();
        let reservation = Some(reservation);
        node.open.push(Call { sequence: node.sequence, admitted_at: now, reserve, reservation, accounts });
    }

    /// A call in flight ends at `percent` of its reserve.
    pub fn finish(&mut self, node: usize, which: usize, percent: i64) {
        if self.nodes[node].open.is_empty() {
            return;
        }
        let which = which % self.nodes[node].open.len();
        let mut call = self.nodes[node].open.remove(which);
        let cost = usd(call.reserve.usd.0 * percent / 100);
        for account in &call.accounts {
            let paid = self.billed.entry(account.clone()).or_default();
            *paid = paid.plus(cost.of(account.limit.unit));
        }
        let row = self.row(node, &call, cost, Outcome::Completed);
        self.nodes[node].log.push(row);
        if call.reservation.take().is_some_and(|reservation| reservation.settle(&cost)) {
            self.tick(node);
        }
    }

    /// Calls that have been in flight for `ms` end.
    pub fn finish_older(&mut self, node: usize, ms: i64, percent: i64) {
        while let Some(which) =
            self.nodes[node].open.iter().position(|call| self.now - call.admitted_at >= ms)
        {
            self.finish(node, which, percent);
        }
    }

    fn row(&mut self, node: usize, call: &Call, charge: Charge, outcome: Outcome) -> UsageRow {
        let now = self.now;
        let node = &mut self.nodes[node];
        node.sequence += 1;
        UsageRow {
            sequence: call.sequence,
            settled_sequence: node.sequence,
            request_id: format!("{}-{}", node.epoch, call.sequence),
            attempt: 0,
            paused_at: UnixMs(call.admitted_at),
            admitted_at: UnixMs(call.admitted_at),
            settled_at: UnixMs(now),
            accounts: call.accounts.clone(),
            observed: Vec::new(),
            caller: Caller::default(),
            route: String::new(),
            tier: String::new(),
            backend: ObjectName::new("b", "b"),
            model: "m".into(),
            usage: Default::default(),
            charge,
            reserve: call.reserve,
            best_tier_cost: NanoUsd(0),
            price_version: Default::default(),
            outcome,
        }
    }

    /// The client of a paused request goes away.
    pub fn give_up(&mut self, node: usize) {
        if let Some((id, ..)) = self.nodes[node].paused.pop() {
            self.nodes[node].gateway.give_up(id);
            self.tick(node);
        }
    }

    /// The process dies at once and starts again; its log is there, or not.
    pub fn crash_gateway(&mut self, node: usize, log_kept: bool) {
        self.break_stream(node, 0);
        // Calls in flight run to their end at the provider and are paid for in full.
        for call in std::mem::take(&mut self.nodes[node].open) {
            for account in &call.accounts {
                let paid = self.billed.entry(account.clone()).or_default();
                *paid = paid.plus(call.reserve.of(account.limit.unit));
            }
            // The replay settles at the reserve what the log holds open.
            let row = self.row(node, &call, call.reserve, Outcome::Replayed);
            self.nodes[node].log.push(row);
        }
        self.next_epoch += 1;
        let fresh = Epoch(self.next_epoch);
        let node = &mut self.nodes[node];
        node.paused.clear();
        node.read = 0;
        node.replayed = false;
        if !log_kept {
            self.lost_logs.insert(node.epoch);
            node.epoch = fresh;
            node.log.clear();
            node.sequence = 0;
            node.replayed = true;
        }
        node.log_state = if log_kept { LogState::Intact } else { LogState::Gap };
        node.gateway = Gateway::new(node.gateway.hello(LogState::New, 0).gateway, node.epoch);
        self.send_policy();
    }

    /// Everything under way is lost, also what was committed and not yet sent; a new one after `ms`.
    pub fn break_stream(&mut self, node: usize, ms: i64) {
        let link = &mut self.nodes[node].link;
        link.up.clear();
        link.down.clear();
        link.down_until = self.now + ms;
        link.greeted = false;
        if let Some(stream) = link.stream.take() {
            self.nodes[node].gateway.disconnected();
            self.events.push(Event::Gone(stream));
        }
    }

    /// The next message travels twice.
    pub fn double(&mut self, node: usize, up: bool) {
        let link = &mut self.nodes[node].link;
        if up {
            // A greeting opens a stream: it can't come twice on one.
            if let Some((due, said)) = link.up.back().cloned()
                && !matches!(said, FromGateway::Hello(_))
            {
                link.up.push_back((due + 40, said));
            }
        } else if let Some((due, said)) = link.down.back().cloned()
            && !matches!(said, FromLedger::Welcome(_))
        {
            link.down.push_back((due + 40, said));
        }
    }

    /// The last two messages arrive in the other order.
    pub fn swap(&mut self, node: usize, up: bool) {
        let link = &mut self.nodes[node].link;
        if up {
            let n = link.up.len();
            if n >= 2 && !matches!(link.up[n - 2].1, FromGateway::Hello(_)) {
                link.up.swap(n - 1, n - 2);
            }
        } else {
            let n = link.down.len();
            if n >= 2 && !matches!(link.down[n - 2].1, FromLedger::Welcome(_)) {
                link.down.swap(n - 1, n - 2);
            }
        }
    }

    /// The last message never arrives.
    pub fn lose(&mut self, node: usize, up: bool) {
        let link = &mut self.nodes[node].link;
        if up {
            if !matches!(link.up.back(), Some((_, FromGateway::Hello(_)))) {
                link.up.pop_back();
            }
        } else if !matches!(link.down.back(), Some((_, FromLedger::Welcome(_)))) {
            link.down.pop_back();
        }
    }

    /// The ledger's process dies; what is committed stays.
    pub fn crash_ledger(&mut self) {
        self.events.clear();
        for node in 0..self.nodes.len() {
            self.break_stream(node, 100);
        }
        self.events.clear();
        self.next_incarnation += 1;
        self.ledger = Ledger::new(Incarnation(self.next_incarnation), settings());
        self.events.push(Event::Limits(self.limits.clone()));
        self.step();
    }

    /// Everything that happens in `ms`.
    pub fn run(&mut self, ms: i64) {
        let end = self.now + ms;
        while self.now < end {
            self.now = (self.now + 10).min(end);
            if self.now % 60_000 < 10 {
                self.send_policy();
            }
            for node in 0..self.nodes.len() {
                self.tick(node);
                self.deliver(node);
            }
            self.step();
        }
    }

    /// A long time in which little happens, in large steps.
    pub fn sleep(&mut self, ms: i64) {
        let end = self.now + ms;
        while self.now < end {
            self.now = (self.now + 5_000).min(end);
            self.send_policy();
            self.events.push(Event::Tick);
            self.run(30);
        }
    }

    /// The clocks move on by `ms` at once: what was under way arrives that much later. Then the ledger folds what
    /// ended windows leave, as its server does beside the steps.
    pub fn skip(&mut self, ms: i64) {
        self.now += ms;
        self.send_policy();
        self.fold();
        self.run(30);
    }

    /// Folds all that may be folded. Returns how many parts that was.
    pub fn fold(&mut self) -> usize {
        let (balances, epochs) = (self.store.balances.clone(), self.store.epochs.clone());
        let mut rows = Rows { balances, epochs, ..Rows::default() };
        let folded = rows.fold_ended(UnixMs(self.now));
        self.store.balances = rows.balances;
        folded
    }

    fn tick(&mut self, n: usize) {
        let now = self.time(n);
        let arrives = self.now + DELAY_MS;
        let node = &mut self.nodes[n];
        if node.link.stream.is_none() && self.now >= node.link.down_until {
            self.next_stream += 1;
            node.link.stream = Some(StreamId(self.next_stream));
            let hello = node.gateway.hello(node.log_state, node.sequence);
            node.link.up.push_back((arrives, FromGateway::Hello(hello)));
        }
        if node.link.greeted {
            // A few at a time: what waits in the log is part of every history.
            let room = node.gateway.room().min(2);
            let rows: Vec<_> = node.log[node.read..].iter().take(room).cloned().collect();
            node.read += rows.len();
            node.gateway.settled(rows);
        }
        let said = node.gateway.tick(now);
        self.messages += said.len() as u64;
        node.link.up.extend(said.into_iter().map(|said| (arrives, said)));
        for id in node.gateway.wakes() {
            let node = &mut self.nodes[n];
            let Some(at) = node.paused.iter().position(|paused| paused.0 == id) else { continue };
            let (_, _, reserve, _) = node.paused.remove(at);
            match node.gateway.resume(id) {
                Some(Resumed::Admitted(reservation)) => self.leave(n, reserve, reservation),
                Some(Resumed::No(no)) => self.refused.push(no),
                Some(Resumed::Unanswered) => self.unanswered += 1,
                None => panic!("a woken request has an outcome"),
            }
        }
    }

    fn deliver(&mut self, n: usize) {
        let now = self.now;
        let at = self.time(n);
        let node = &mut self.nodes[n];
        let Some(stream) = node.link.stream else { return };
        while node.link.up.front().is_some_and(|(due, _)| *due <= now) {
            let (_, said) = node.link.up.pop_front().unwrap();
            self.events.push(Event::Said(stream, said));
        }
        while node.link.down.front().is_some_and(|(due, _)| *due <= now) {
            match node.link.down.pop_front().unwrap().1 {
                FromLedger::Welcome(welcome) => {
                    assert!(!welcome.epoch_closed, "an epoch that is in use was closed");
                    node.gateway.welcome(&welcome, at);
                    if !node.replayed {
                        node.log.iter().filter(|row| row.settled_sequence > welcome.durable).for_each(
                            |row| {
                                node.gateway.replay(row);
                            },
                        );
                        node.read = node.log.partition_point(|row| row.settled_sequence <= welcome.durable);
                        node.replayed = true;
                    }
                    node.link.greeted = true;
                }
                FromLedger::Answer(answer) => node.gateway.answer(&answer, at),
                FromLedger::PolicyDelta(_) => {}
            }
        }
        self.tick(n);
    }

    /// One commit: the rows that the ledger names, and no others.
    fn step(&mut self) {
        let events = std::mem::take(&mut self.events);
        let now = UnixMs(self.now);
        if events.is_empty() && self.ledger.next(now).0 > self.now + 1 {
            return;
        }
        let touched = self.ledger.touches(&events);
        let epochs: BTreeMap<Epoch, EpochRecord> = self
            .store
            .epochs
            .iter()
            .filter(|(epoch, record)| record.state != EpochState::Closed || touched.epochs.contains(epoch))
            .map(|(epoch, record)| (*epoch, record.clone()))
            .collect();
        let of_gateway = |epoch: &Epoch| {
            epochs.get(epoch).is_some_and(|record| touched.all_of_gateways.contains(&record.gateway))
        };
        let wanted = |account: &AccountKey, balance: &Balance| {
            touched.accounts.contains(account)
                || balance.held.keys().any(|epoch| touched.all_of.contains(epoch) || of_gateway(epoch))
        };
        let balances: BTreeMap<AccountKey, Balance> = self
            .store
            .balances
            .iter()
            .filter(|(account, balance)| wanted(account, balance))
            .map(|(account, balance)| (account.clone(), balance.clone()))
            .collect();
        let read: BTreeSet<AccountKey> = balances.keys().cloned().collect();
        let mut rows = Rows { epochs, balances, ..Rows::default() };
        let messages = self.ledger.step(&events, &mut rows, now);
        for account in &rows.changed_balances {
            let unread = self.store.balances.contains_key(account) && !read.contains(account);
            assert!(!unread, "{account} was written over without being read");
            self.store.balances.insert(account.clone(), rows.balances[account].clone());
        }
        for epoch in &rows.changed_epochs {
            self.store.epochs.insert(*epoch, rows.epochs[epoch].clone());
        }
        for (epoch, row) in rows.usage {
            let old = self.store.usage.insert((epoch, row.sequence), row);
            assert!(old.is_none(), "a row was stored twice");
        }
        for (stream, message) in messages {
            if let Some(node) = self.nodes.iter_mut().find(|node| node.link.stream == Some(stream)) {
                node.link.down.push_back((self.now + DELAY_MS, message));
            }
        }
    }

    pub fn went_back(&self) -> bool {
        self.ledger.went_back()
    }

    /// I1, by the books and by the provider's bill.
    pub fn check(&self) {
        assert_eq!(self.ledger.mismatches(), 0, "rows and totals differ");
        for (account, balance) in &self.store.balances {
            let standing = balance.standing(&self.store.epochs);
            let highest = self.highest[&account.limit];
            assert!(standing.committed() <= highest, "{account}: {standing:?} is more than {highest:?}");
        }
        let mut at_worst = self.billed.clone();
        for call in self.nodes.iter().flat_map(|node| &node.open) {
            for account in &call.accounts {
                let worst = at_worst.entry(account.clone()).or_default();
                *worst = worst.plus(call.reserve.of(account.limit.unit));
            }
        }
        for (account, worst) in at_worst {
            assert!(worst <= self.highest[&account.limit], "{account}: providers may bill {worst:?}");
        }
    }

    /// Everything comes to rest: streams stand, calls end, reports arrive.
    pub fn settle_down(&mut self) {
        for node in 0..self.nodes.len() {
            self.nodes[node].link.down_until = 0;
            while !self.nodes[node].paused.is_empty() {
                self.give_up(node);
            }
            while !self.nodes[node].open.is_empty() {
                self.finish(node, 0, 50);
            }
        }
        self.run(1_000);
        self.sleep(60_000);
        self.check();
    }

    /// I4: what was billed is settled exactly once; where logs were lost, settled + unaccounted covers it.
    pub fn check_books(&self) {
        for (account, billed) in &self.billed {
            let standing = self.store.balances[account].standing(&self.store.epochs);
            if self.lost_logs.is_empty() {
                assert_eq!(standing.settled, *billed, "{account}: settled differs from the bill");
            } else {
                assert!(
                    standing.used() >= *billed,
                    "{account}: {standing:?} does not cover the bill {billed:?}"
                );
            }
        }
    }
}
