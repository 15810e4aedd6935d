//! One gateway's side of the ledger protocol: what it holds, who waits, what it must say.
//!
//! Workers call [`Gateway::admit`] (lock-free) and, when it says short, [`Gateway::pause`]. One client
//! thread feeds in what the ledger says and what the log holds, and sends what [`Gateway::tick`]
//! returns. Nothing here sends, waits or reads a clock; `now` is the ledger's time.

mod book;
mod pause;

use crate::account::{AccountKey, Amount, Charge, LimitKey};
use crate::ids::{Epoch, Incarnation, UnixMs};
use crate::policy::Bounds;
use crate::protocol::{
    Answer, AskId, FromGateway, Hello, LogState, No, NoKind, Report, Totals, UsageRow, Welcome,
};
use crate::slice::{Reservation, Slice};
use arc_swap::ArcSwap;
use book::Book;
use pause::Waiting;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a request may wait for the ledger, in milliseconds.
pub const PAUSE_MS: i64 = 5_000;
/// How long changed totals and rows may wait for company. At 1 s a flush alone cost 0.09 messages a
/// request with ten gateways, at 5 s 0.02.
const REPORT_MS: i64 = 5_000;
/// How long asks and returns of small accounts are gathered.
const GATHER_MS: i64 = 100;
/// How long *contended* is believed.
const CONTENDED_MS: i64 = 1_000;
/// How often slices are looked over for refills and returns.
const LOOK_MS: i64 = 100;
/// How long rows may stay unacknowledged before they travel again.
const RESEND_MS: i64 = 4 * REPORT_MS;
/// Rows in one report.
const MAX_ROWS: usize = 1_000;
/// Rows kept until the ledger has stored them; what is more waits in the log.
const MAX_BACKLOG: usize = 20_000;

/// What a gateway holds and owes; shared by all workers and the client thread.
#[derive(Debug)]
pub struct Gateway {
    id: String,
    /// By limit the slices of its windows, in order. Swapped whole when limits or bounds change.
    current: ArcSwap<HashMap<LimitKey, Windows>>,
    state: Mutex<State>,
}

/// The slices of one limit: the current window's and those of the windows to come.
type Windows = Vec<(Bounds, Arc<Slice>)>;

/// What [`Gateway::admit`] found.
#[derive(Debug)]
pub enum Admission {
    /// Every account has given its reserve.
    Admitted(Reservation),
    /// At least one account is short; nothing was taken. Pause, then wait to be told.
    Short,
    /// A cached no applies: refuse at once.
    No(No),
    /// No bounds are known for the window of this limit at this time: the operator has been away
    /// longer than its windows reach, or a newer policy does not have the limit. Decide again by the newest;
    /// if that changes nothing, refuse with `ledger_unavailable`.
    NoWindow(LimitKey),
}

/// How a pause ended. Taken once by the paused request's worker.
#[derive(Debug)]
pub enum Resumed {
    /// Go on with this.
    Admitted(Reservation),
    /// The ledger says no.
    No(No),
    /// The ledger did not answer in time: 503.
    Unanswered,
}

#[derive(Debug)]
struct State {
    epoch: Epoch,
    ride_through_ms: i64,
    /// Those that the policy enforces; `None` before the first policy.
    limits: Option<HashSet<LimitKey>>,
    bounds: HashMap<String, Vec<Bounds>>,
    books: HashMap<AccountKey, Book>,
    waiting: Waiting,
    /// `None`: no stream, or no Welcome on it yet.
    connected: bool,
    incarnation: Option<Incarnation>,
    /// Settled rows that the ledger has not stored yet, and how many of them this stream has carried.
    backlog: VecDeque<UsageRow>,
    sent_rows: usize,
    /// The last settlement sequence among all rows that were sent or stored.
    through: u64,
    durable: u64,
    /// When `durable` last moved, or rows first travelled after it.
    progress: UnixMs,
    next_report: UnixMs,
    next_look: UnixMs,
}

impl Gateway {
    /// A gateway that holds nothing yet.
    #[must_use]
    pub fn new(id: String, epoch: Epoch) -> Self {
        Self {
            id,
            current: ArcSwap::default(),
            state: Mutex::new(State {
                epoch,
                ride_through_ms: 600_000,
                limits: None,
                bounds: HashMap::new(),
                books: HashMap::new(),
                waiting: Waiting::default(),
                connected: false,
                incarnation: None,
                backlog: VecDeque::new(),
                sent_rows: 0,
                through: 0,
                durable: 0,
                progress: UnixMs(0),
                next_report: UnixMs(0),
                next_look: UnixMs(0),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every update leaves the state whole, so a panic elsewhere under the lock does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This life of its log.
    pub fn epoch(&self) -> Epoch {
        self.state().epoch
    }

    /// Worker: takes `reserve` from the current account of every limit in `limits`, or from none.
    pub fn admit(&self, limits: &[LimitKey], reserve: &Charge, now: UnixMs) -> Admission {
        let mut parts = match self.parts(limits, reserve, now) {
            Ok(parts) => parts,
            Err(limit) => return Admission::NoWindow(limit),
        };
        for (slice, reserve) in &parts {
            slice.want(*reserve);
        }
        // First come, first served: where somebody waits, nobody takes past him.
        if !parts.iter().any(|(slice, _)| slice.waits()) {
            parts = match Reservation::take(parts) {
                Ok(reservation) => return Admission::Admitted(reservation),
                Err(parts) => parts,
            };
        }
        let noes = parts.iter().filter(|(slice, reserve)| slice.free() < *reserve);
        match noes
            .filter_map(|(slice, reserve)| Some((slice.end(), slice.no(*reserve, now)?)))
            .max_by_key(|no| no.0)
        {
            Some((_, no)) => Admission::No(no),
            None => Admission::Short,
        }
    }

    fn parts(
        &self,
        limits: &[LimitKey],
        reserve: &Charge,
        now: UnixMs,
    ) -> Result<Vec<(Arc<Slice>, Amount)>, LimitKey> {
        let current = self.current.load();
        limits
            .iter()
            .map(|limit| {
                // A limit that is not in force was in a policy that has been replaced meanwhile: whoever decided by
                // that decides again. Skipped, the call would be charged to neither.
                let windows = current.get(limit).map_or(&[][..], Vec::as_slice);
                let (_, slice) = windows
                    .iter()
                    .find(|(bounds, _)| bounds.start <= now && now < bounds.end)
                    .ok_or_else(|| limit.clone())?;
                Ok((slice.clone(), reserve.of(limit.unit)))
            })
            .collect()
    }

    /// Worker: puts a request that was [`Admission::Short`] in the queue of each account that is short. The
    /// client thread must be woken after it. [`Gateway::wakes`] will name the id exactly once, unless the
    /// request is given up first. `since`: when it was first short; its pause ends [`PAUSE_MS`] after it.
    pub fn pause(&self, limits: &[LimitKey], reserve: &Charge, since: UnixMs, now: UnixMs) -> AskId {
        let mut state = self.state();
        // Under the lock, and only for limits in force: a policy may have come since it was found short.
        let current = self.current.load();
        let limits: Vec<_> = limits.iter().filter(|limit| current.contains_key(*limit)).cloned().collect();
        let parts = self.parts(&limits, reserve, now).unwrap_or_default();
        state.waiting.push(limits, *reserve, parts, since, now)
    }

    /// Worker: what became of a paused request that was woken. `None`: it was given up already.
    pub fn resume(&self, id: AskId) -> Option<Resumed> {
        self.state().waiting.resume(id)
    }

    /// Worker: the paused request is gone; what it was given joins the slices. Wake the client thread after it.
    pub fn give_up(&self, id: AskId) {
        self.state().waiting.give_up(id);
    }

    /// Client thread: how long slices should last without the operator.
    pub fn set_ride_through(&self, ride_through_ms: i64) {
        self.state().ride_through_ms = ride_through_ms;
    }

    /// Client thread: the limits that the policy in force enforces, and the bounds of their windows. Free parts of
    /// other slices are returned. A window that the ledger no longer names stays one delta longer: this
    /// gateway's clock may not have passed its end yet.
    pub fn set_policy(
        &self,
        limits: impl IntoIterator<Item = LimitKey>,
        windows: impl IntoIterator<Item = (String, Vec<Bounds>)>,
    ) {
        let mut state = self.state();
        let past = std::mem::take(&mut state.bounds);
        state.bounds = windows.into_iter().collect();
        for (spec, bounds) in &mut state.bounds {
            let before = |old: &&Bounds| bounds.first().is_none_or(|first| old.end <= first.start);
            if let Some(last) = past.get(spec).and_then(|old| old.iter().rfind(before)) {
                bounds.insert(0, *last);
            }
        }
        self.put_in_force(&mut state, limits.into_iter().collect());
    }

    fn put_in_force(&self, state: &mut State, limits: HashSet<LimitKey>) {
        state.limits = Some(limits);
        self.rebuild(state);
        // Who waits for a limit that holds no longer waits for the others only.
        let State { waiting, limits, .. } = state;
        let limits = limits.iter().flatten().collect::<HashSet<_>>();
        waiting.keep_limits(
            |limit| limits.contains(limit),
            |limits, reserve, now| self.parts(limits, reserve, now).ok(),
        );
    }

    fn rebuild(&self, state: &mut State) {
        let mut current = HashMap::new();
        for limit in state.limits.iter().flatten() {
            let bounds = state.bounds.get(&limit.window).map_or(&[][..], Vec::as_slice);
            let slices = bounds.iter().map(|bounds| {
                let key = AccountKey { limit: limit.clone(), start: bounds.start, key: String::new() };
                let book = state.books.entry(key).or_insert_with_key(|key| Book::new(key.clone()));
                book.slice.set_end(bounds.end);
                (*bounds, book.slice.clone())
            });
            current.insert(limit.clone(), slices.collect());
        }
        self.current.store(Arc::new(current));
    }

    /// Client thread: rows read from the log, each once, in order of settlement, beginning after the Welcome's
    /// `durable`. Read no more than [`Gateway::room`].
    pub fn settled(&self, rows: impl IntoIterator<Item = UsageRow>) {
        self.state().backlog.extend(rows);
    }

    /// Client thread: how many more rows [`Gateway::settled`] takes now.
    pub fn room(&self) -> usize {
        MAX_BACKLOG.saturating_sub(self.state().backlog.len())
    }

    /// Client thread, after a restart, between the first Welcome and the first admission: the row was settled by
    /// an earlier process, so its cost is no longer free. Hand it to [`Gateway::settled`] too.
    pub fn replay(&self, row: &UsageRow) {
        let mut state = self.state();
        for account in &row.accounts {
            state.book(account).slice.add(Amount::ZERO.minus(row.charge.of(account.limit.unit)));
        }
    }

    /// Client thread: settlements up to this sequence are stored: the log may forget them.
    pub fn durable(&self) -> u64 {
        self.state().durable
    }

    /// Client thread, on a new stream: what to say first. `sequence` is the last in the log.
    pub fn hello(&self, log: LogState, sequence: u64) -> Hello {
        let state = self.state();
        let totals = state.books.values().filter(|book| book.granted > Amount::ZERO);
        Hello {
            gateway: self.id.clone(),
            epoch: state.epoch,
            log,
            totals: totals.map(|book| Totals { settled: book.stored, ..book.totals() }).collect(),
            sequence,
            policy: Vec::new(),
        }
    }

    /// Client thread: a new life of the log (it was refused, or proves nothing). Only calls admitted from
    /// here on are charged to it, so nothing may be in flight or waiting in the log.
    pub fn restart(&self, epoch: Epoch) {
        let mut state = self.state();
        state.epoch = epoch;
        state.books.clear();
        state.backlog.clear();
        (state.sent_rows, state.through, state.durable) = (0, 0, 0);
        state.connected = false;
        self.rebuild(&mut state);
        let State { waiting, .. } = &mut *state;
        waiting.resolve_parts(|limits, reserve, now| self.parts(limits, reserve, now).ok());
    }

    /// Client thread: the ledger's greeting.
    pub fn welcome(&self, welcome: &Welcome, now: UnixMs) {
        let mut state = self.state();
        state.connected = true;
        if state.incarnation.replace(welcome.incarnation) != Some(welcome.incarnation) {
            state.books.values().for_each(|book| book.slice.forget_noes());
        }
        state.stored(welcome.durable);
        (state.sent_rows, state.through, state.progress) = (0, welcome.durable, now);
        for book in state.books.values_mut() {
            book.begin_stream();
        }
        for holding in &welcome.holdings {
            let book = state.book(&holding.account);
            book.adopt(holding);
        }
        state.waiting.begin_stream();
        state.next_report = now;
        state.next_look = now;
    }

    /// Client thread: an answer. Requests that can go on are in [`Gateway::wakes`] after the next tick.
    pub fn answer(&self, answer: &Answer, now: UnixMs) {
        let mut state = self.state();
        for grant in &answer.grants {
            state.book(&grant.account).grant(grant);
            if grant.recalled && !grant.small {
                state.next_look = now;
            }
        }
        for no in &answer.noes {
            let slice = state.book(&no.account).slice.clone();
            match no.kind {
                NoKind::Exhausted => slice.keep_exhausted(no.clone()),
                NoKind::Contended => slice.keep_contended(no.clone(), now.plus(CONTENDED_MS)),
            }
            state.waiting.refuse(no);
        }
        for account in &answer.withdrawals {
            state.book(account).slice.forget_exhausted();
        }
        for ask in &answer.earmarks {
            state.waiting.earmarked(*ask);
        }
        if answer.durable > state.durable {
            state.progress = now;
        }
        state.stored(answer.durable);
    }

    /// Client thread: the stream broke. Waiting requests go on waiting: a new stream may come in time.
    pub fn disconnected(&self) {
        self.state().connected = false;
    }

    /// Client thread: what must be said now; call it after every event, when woken, and at [`Gateway::next`].
    pub fn tick(&self, now: UnixMs) -> Vec<FromGateway> {
        self.serve(now);
        let mut state = self.state();
        let mut said = Vec::new();
        if !state.connected {
            return said;
        }
        let state = &mut *state;
        if state.sent_rows == 0 {
            state.progress = now;
        } else if now.since(state.progress) > RESEND_MS {
            state.rewind(now);
        }
        let asks = state.waiting.asks(now, |key| state.books.get(key).is_some_and(|book| book.small));
        said.extend(state.waiting.cancels().map(FromGateway::Cancel));
        let mut refills = Vec::new();
        let mut urgent = !asks.is_empty();
        if now >= state.next_look {
            state.next_look = now.plus(LOOK_MS);
            urgent |= state.look(&self.id, &self.current.load(), now, &mut refills);
        }
        if urgent || now >= state.next_report {
            let first = said.len();
            said.extend(state.report(now, &mut refills).map(FromGateway::Report));
            // Only rows make a second report: totals move all the time.
            while state.sent_rows < state.backlog.len() {
                said.extend(state.report(now, &mut refills).map(FromGateway::Report));
            }
            if said.len() > first || now >= state.next_report {
                state.next_report = now.plus(REPORT_MS);
            }
        }
        said.extend(asks.into_iter().map(FromGateway::Ask));
        said
    }

    /// Client thread, instead of a tick while earlier messages still wait to be sent: who can go on goes on, pauses
    /// end, nothing new is said.
    pub fn serve(&self, now: UnixMs) {
        let mut state = self.state();
        state.waiting.resolve_ended(now, |limits, reserve| self.parts(limits, reserve, now).ok());
        state.waiting.serve(now);
    }

    /// Client thread: the paused requests to wake (commit their schedulers). Each id comes once.
    pub fn wakes(&self) -> Vec<AskId> {
        self.state().waiting.wakes()
    }

    /// Ends every pause without an answer: no client thread will bring one. [`Gateway::wakes`] names them.
    pub fn end_pauses(&self) {
        self.state().waiting.end_all();
    }

    /// When to call [`Gateway::tick`] again at the latest.
    pub fn next(&self, now: UnixMs) -> UnixMs {
        let state = self.state();
        let waiting = state.waiting.next(now);
        if !state.connected {
            return waiting.unwrap_or_else(|| now.plus(REPORT_MS));
        }
        let look = state.next_look.min(state.next_report);
        waiting.map_or(look, |at| at.min(look)).max(now.plus(1))
    }

    /// Client thread, at a clean end: the next tick says everything that there is to say.
    pub fn hurry(&self) {
        let mut state = self.state();
        (state.next_report, state.next_look) = (UnixMs(0), UnixMs(0));
    }

    /// Whether the ledger has stored every row that was handed in.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.state().backlog.is_empty()
    }

    /// Reserves in flight and free money over all accounts of `limit`, for tests and metrics.
    #[must_use]
    pub fn held(&self, account: &AccountKey) -> Option<(Amount, Amount)> {
        self.state().books.get(account).map(|book| (book.slice.free(), book.slice.reserved()))
    }

    /// Requests that wait.
    #[must_use]
    pub fn paused(&self) -> usize {
        self.state().waiting.len()
    }
}

impl State {
    fn book(&mut self, account: &AccountKey) -> &mut Book {
        self.books.entry(account.clone()).or_insert_with_key(|key| Book::new(key.clone()))
    }

    /// Rows that were sent are not stored in time: a message was lost, they travel again.
    fn rewind(&mut self, now: UnixMs) {
        (self.sent_rows, self.through, self.progress) = (0, self.durable, now);
        for book in self.books.values_mut() {
            book.rewind();
        }
        self.next_report = now;
    }

    /// Rows up to `durable` are stored.
    fn stored(&mut self, durable: u64) {
        while let Some(row) = self.backlog.front()
            && row.settled_sequence <= durable
        {
            for account in &row.accounts {
                if let Some(book) = self.books.get_mut(account) {
                    book.stored = book.stored.plus(row.charge.of(account.limit.unit));
                }
            }
            self.backlog.pop_front();
            self.sent_rows = self.sent_rows.saturating_sub(1);
        }
        self.durable = self.durable.max(durable);
    }

    /// Looks every slice over: returns what is not needed, names what runs low, forgets what has ended.
    /// Returns whether it can't wait for the next report.
    fn look(
        &mut self,
        gateway: &str,
        current: &HashMap<LimitKey, Windows>,
        now: UnixMs,
        refills: &mut Vec<AccountKey>,
    ) -> bool {
        let mut urgent = false;
        // Rate and largest reserve of the limits that are used, for their windows to come.
        let mut pace: HashMap<LimitKey, (Amount, Amount)> = HashMap::new();
        // Most of many thousand books have never been used: they are passed over before anything is hashed.
        for book in self.books.values_mut().filter(|book| book.is_used()) {
            book.measure(now);
            let slice = book.slice.clone();
            let limit = &slice.key().limit;
            if book.w_max() > Amount::ZERO {
                let known = pace.entry(limit.clone()).or_default();
                *known = (known.0.max(book.rate), known.1.max(book.w_max()));
            }
            // Before the first policy nothing is known to be out of force.
            let in_force = self.limits.as_ref().is_none_or(|limits| limits.contains(limit));
            let in_force = in_force && book.slice.end() > now;
            urgent |= book.give_back(in_force);
            if in_force && slice.key().start <= now && book.wants_refill(now) {
                refills.push(slice.key().clone());
                urgent = true;
            }
        }
        for (limit, pace) in pace {
            let windows = current.get(&limit).into_iter().flatten();
            for (_, slice) in windows.filter(|(bounds, _)| bounds.start > now) {
                if let Some(book) = self.books.get_mut(slice.key())
                    && book.wants_first(gateway, pace, self.ride_through_ms, now)
                {
                    refills.push(slice.key().clone());
                    urgent = true;
                }
            }
        }
        // An ended window with nothing left to say: its book closes. Not before: a book that is opened
        // again would take the cumulative grant for a new one.
        self.books.retain(|_, book| book.slice.end() > now || !book.is_spent());
        urgent
    }

    /// The next report, if anything has changed.
    fn report(&mut self, now: UnixMs, refills: &mut Vec<AccountKey>) -> Option<Report> {
        let after = self.through;
        let rows: Vec<UsageRow> = self.backlog.iter().skip(self.sent_rows).take(MAX_ROWS).cloned().collect();
        self.sent_rows += rows.len();
        for row in &rows {
            for account in &row.accounts {
                let book = self.book(account);
                book.settled = book.settled.plus(row.charge.of(account.limit.unit));
            }
            self.through = self.through.max(row.settled_sequence);
        }
        let wanted: HashSet<&AccountKey> = refills.iter().collect();
        let told =
            self.books.values_mut().filter(|book| book.changed(now) || wanted.contains(book.slice.key()));
        let totals: Vec<Totals> = told.map(|book| book.report(now)).collect();
        let refills = std::mem::take(refills);
        if rows.is_empty() && totals.is_empty() && refills.is_empty() {
            return None;
        }
        Some(Report { totals, rows, after, through: self.through, refills })
    }
}
