//! I1 to I6 as a state machine: random budgets, concurrent gateways, crashes, lost, doubled and
//! reordered messages, skewed clocks, changed amounts. The world round it is in `world`.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use plimsoll_core::account::{AccountKey, Amount, Unit};
use plimsoll_core::protocol::NoKind;
use proptest::prelude::*;
use world::{World, limit, usd};

/// A little more than a day: windows that ended just before are over after it.
const DAY_MS: i64 = 86_400_000 + 5 * 60_000;

#[derive(Clone, Debug)]
enum Op {
    Call { node: usize, both: bool, reserve: i64 },
    Finish { node: usize, which: usize, percent: i64 },
    GiveUp { node: usize },
    Run { ms: i64 },
    Break { node: usize, ms: i64 },
    CrashGateway { node: usize, log_kept: bool },
    CrashLedger,
    Amount { which: usize, amount: i64 },
    Skew { node: usize, ms: i64 },
    Double { node: usize, up: bool },
    Swap { node: usize, up: bool },
    Lose { node: usize, up: bool },
    Silence { node: usize },
    Minutes { minutes: i64 },
    Day,
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..4_usize;
    prop_oneof![
        30 => (node.clone(), any::<bool>(), 1..400_i64)
            .prop_map(|(node, both, reserve)| Op::Call { node, both, reserve }),
        25 => (node.clone(), any::<usize>(), 0..=100_i64)
            .prop_map(|(node, which, percent)| Op::Finish { node, which, percent }),
        15 => (1..3_000_i64).prop_map(|ms| Op::Run { ms }),
        3 => node.clone().prop_map(|node| Op::GiveUp { node }),
        3 => (node.clone(), 0..20_000_i64).prop_map(|(node, ms)| Op::Break { node, ms }),
        3 => (node.clone(), prop::bool::weighted(0.7))
            .prop_map(|(node, log_kept)| Op::CrashGateway { node, log_kept }),
        2 => Just(Op::CrashLedger),
        2 => (0..2_usize, 100..4_000_i64).prop_map(|(which, amount)| Op::Amount { which, amount }),
        2 => (node.clone(), -400..400_i64).prop_map(|(node, ms)| Op::Skew { node, ms }),
        4 => (node.clone(), any::<bool>()).prop_map(|(node, up)| Op::Double { node, up }),
        4 => (node.clone(), any::<bool>()).prop_map(|(node, up)| Op::Swap { node, up }),
        4 => (node.clone(), any::<bool>()).prop_map(|(node, up)| Op::Lose { node, up }),
        1 => node.prop_map(|node| Op::Silence { node }),
        1 => (1..3_i64).prop_map(|minutes| Op::Minutes { minutes }),
        2 => Just(Op::Day),
    ]
}

fn play(gateways: usize, amounts: (i64, i64), ops: &[Op]) -> World {
    let limits =
        [limit("all", Unit::Usd, "Total@UTC"), limit("minute", Unit::Tokens, "Minute@Europe/Berlin")];
    let mut world = World::new(gateways, &[(limits[0].clone(), amounts.0), (limits[1].clone(), amounts.1)]);
    for op in ops {
        match *op {
            Op::Call { node, both, reserve } => {
                let limits = if both { &limits[..] } else { &limits[..1] };
                world.call(node % gateways, limits, usd(reserve));
            }
            Op::Finish { node, which, percent } => world.finish(node % gateways, which, percent),
            Op::GiveUp { node } => world.give_up(node % gateways),
            Op::Run { ms } => world.run(ms),
            Op::Break { node, ms } => world.break_stream(node % gateways, ms),
            Op::CrashGateway { node, log_kept } => world.crash_gateway(node % gateways, log_kept),
            Op::CrashLedger => world.crash_ledger(),
            Op::Amount { which, amount } => world.set_amount(&limits[which], amount),
            Op::Skew { node, ms } => world.skew(node % gateways, ms),
            Op::Double { node, up } => world.double(node % gateways, up),
            Op::Swap { node, up } => world.swap(node % gateways, up),
            Op::Lose { node, up } => world.lose(node % gateways, up),
            Op::Silence { node } => {
                world.break_stream(node % gateways, world::LOST_AFTER_MS + 60_000);
                world.sleep(world::LOST_AFTER_MS + 30_000);
            }
            Op::Minutes { minutes } => world.sleep(minutes * 60_000),
            Op::Day => world.skip(DAY_MS),
        }
        world.check();
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_history_overspends_loses_or_counts_twice(
        gateways in 1..=4_usize,
        amounts in (200..4_000_i64, 200..4_000_i64),
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let mut world = play(gateways, amounts, &ops);
        world.settle_down();
        world.check_books();
    }
}

#[test]
fn what_is_left_can_be_spent_after_any_rush() {
    let all = limit("all", Unit::Usd, "Total@UTC");
    for gateways in [1, 2, 5] {
        let mut world = World::new(gateways, &[(all.clone(), 100_000)]);
        let (mut next, mut reserve) = (0, 0);
        while world.refused.iter().all(|no| no.kind != NoKind::Exhausted) {
            for _ in 0..3 {
                next += 1;
                reserve = (reserve + 37) % 300;
                world.call(next % gateways, std::slice::from_ref(&all), usd(100 + reserve));
            }
            world.run(20);
            for node in 0..gateways {
                world.finish_older(node, 2_000, 40);
            }
            assert!(world.now < 1_764_547_200_000 + 120_000, "nobody was told that it is exhausted");
        }
        world.settle_down();
        world.check_books();
        let used = world.billed.values().fold(Amount::ZERO, |sum, billed| sum.plus(*billed));
        assert!(used >= Amount(99_500), "with {gateways} gateways only {used:?} of 100000 was spent");
        assert_eq!(world.unanswered, 0);
    }
}

#[test]
fn a_window_rolls_over_and_each_call_settles_where_it_was_admitted() {
    let minute = limit("minute", Unit::Usd, "Minute@UTC");
    let mut world = World::new(2, &[(minute.clone(), 1_000)]);
    world.call(0, std::slice::from_ref(&minute), usd(600));
    world.run(300);
    world.call(1, std::slice::from_ref(&minute), usd(600));
    world.run(6_000);
    assert_eq!(world.refused.len(), 1, "600 + 600 do not fit into 1000");
    world.sleep(60_000);
    world.call(1, std::slice::from_ref(&minute), usd(600));
    world.run(300);
    assert_eq!(world.admitted, 2, "the next minute has its own 1000");
    world.settle_down();
    world.check_books();
    assert_eq!(world.billed.len(), 2);
}

#[test]
fn a_call_that_cost_nothing_changes_nothing_else_in_its_account() {
    let all = limit("all", Unit::Usd, "Total@UTC");
    let mut world = World::new(1, &[(all.clone(), 1_000)]);
    for percent in [50, 0] {
        world.call(0, std::slice::from_ref(&all), usd(100));
        world.run(100);
        world.finish(0, 0, percent);
        world.sleep(30_000);
    }
    world.check_books();
}

#[test]
fn a_gateway_whose_clock_is_behind_serves_on_when_a_window_ends() {
    let minute = limit("minute", Unit::Usd, "Minute@UTC");
    let mut world = World::new(1, &[(minute.clone(), 1_000)]);
    world.skew(0, -300);
    // The delta of the new minute is here before the gateway's own clock is.
    world.run(60_000 - 200);
    world.run(300);
    for _ in 0..5 {
        world.call(0, std::slice::from_ref(&minute), usd(10));
        world.run(100);
        world.finish(0, 0, 50);
    }
    assert_eq!((world.unanswered, world.admitted), (0, 5));
}

/// Two calls in flight in a minute; the first costs what both have reserved, so its slice looks empty.
fn a_minute_in_debt() -> (World, AccountKey) {
    let minute = limit("minute", Unit::Usd, "Minute@UTC");
    let mut world = World::new(1, &[(minute.clone(), 200)]);
    for _ in 0..2 {
        world.call(0, std::slice::from_ref(&minute), usd(100));
        world.run(1_000);
    }
    assert_eq!(world.nodes[0].open.len(), 2);
    world.finish(0, 0, 200);
    world.run(10_000);
    let account = world.store.balances.keys().next().unwrap().clone();
    (world, account)
}

#[test]
fn a_call_that_ends_days_after_its_slice_was_folded_is_counted_once() {
    let (mut world, account) = a_minute_in_debt();
    assert_eq!(world.fold(), 0, "a window that has just ended stays as it is");
    world.skip(DAY_MS);
    assert!(world.store.balances[&account].held.is_empty(), "what holds nothing is folded");
    assert_eq!(world.store.balances[&account].settled, Amount(200));
    world.finish(0, 0, 80);
    // Its report travels twice, then the stream breaks, and all is told again.
    world.run(5_100);
    world.double(0, true);
    world.run(1_000);
    world.break_stream(0, 0);
    world.run(10_000);
    assert_eq!(world.store.balances[&account].settled, Amount(280));
    assert!(world.store.balances[&account].held.is_empty(), "no part begins again");
    assert!(!world.went_back());
    world.check_books();
}

#[test]
fn a_log_that_is_replayed_days_after_its_slice_was_folded_is_counted_once() {
    let (mut world, account) = a_minute_in_debt();
    world.break_stream(0, 2 * DAY_MS);
    world.skip(DAY_MS);
    assert!(world.store.balances[&account].held.is_empty());
    // The second call is open in the log: it is settled at its reserve.
    world.crash_gateway(0, true);
    world.skip(DAY_MS);
    world.run(10_000);
    assert_eq!(world.store.balances[&account].settled, Amount(300));
    world.check_books();
}

#[test]
fn what_a_silent_gateway_holds_of_an_ended_window_is_not_folded() {
    let minute = limit("minute", Unit::Usd, "Minute@UTC");
    let mut world = World::new(1, &[(minute.clone(), 200)]);
    world.call(0, std::slice::from_ref(&minute), usd(100));
    world.run(1_000);
    let account = world.store.balances.keys().next().unwrap().clone();
    world.break_stream(0, 3 * DAY_MS);
    world.run(100);
    world.skip(DAY_MS);
    world.sleep(30_000);
    assert_eq!(world.fold(), 0);
    let standing = world.store.balances[&account].standing(&world.store.epochs);
    assert!(standing.unaccounted >= Amount(100), "{standing:?}");
    world.settle_down();
    world.check_books();
    world.skip(DAY_MS);
    assert!(world.store.balances[&account].held.is_empty());
}

/// Calls come without end; how long at most, after the first refusal, something that waits would have fitted into
/// what nobody had reserved.
fn longest_wait_for_what_is_there(gateways: usize, seed: u64) -> i64 {
    let (day, all) = (limit("day", Unit::Usd, "Total@UTC"), limit("all", Unit::Usd, "Total@UTC"));
    let amount = 2_000_000_000;
    let mut world = World::new(gateways, &[(day.clone(), amount), (all.clone(), 100 * amount)]);
    let mut seed = seed;
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut since, mut longest) = (None::<i64>, 0);
    let limits = [day.clone(), all];
    for _ in 0..3_000 {
        for node in 0..gateways {
            if draw(3) == 0 {
                let reserve = i64::try_from(5_000_000 + draw(8_000_000) + draw(4) / 3 * 12_000_000).unwrap();
                world.call(node, &limits, usd(reserve));
            }
        }
        world.run(10);
        for node in 0..gateways {
            world.finish_older(node, 60, i64::try_from(40 + draw(60)).unwrap());
        }
        let open = world.nodes.iter().flat_map(|node| &node.open).map(|call| call.reserve().0).sum::<i64>();
        let billed = world.billed.iter().filter(|(account, _)| account.limit == day);
        let left = amount - billed.map(|(_, billed)| billed.0).sum::<i64>() - open;
        let waits = world.nodes.iter().flat_map(|node| &node.paused).map(|paused| paused.2.usd.0).min();
        let fits = waits.is_some_and(|least| least <= left) && !world.refused.is_empty();
        match (fits, since) {
            (true, None) => since = Some(world.now),
            (true, Some(at)) => longest = longest.max(world.now - at),
            (false, _) => since = None,
        }
    }
    longest
}

#[test]
fn what_is_there_at_the_end_goes_to_who_waits_for_it_soon() {
    for gateways in [1, 2, 5] {
        for seed in 0..30 {
            let longest = longest_wait_for_what_is_there(gateways, seed);
            assert!(longest <= 500, "{gateways} gateways, seed {seed}: {longest} ms");
        }
    }
}
