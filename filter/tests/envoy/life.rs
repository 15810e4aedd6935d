//! How a gateway begins, ends, and begins again.

use super::*;

#[test]
fn a_gateway_killed_in_flight_settles_at_the_reserve_and_goes_on_in_its_epoch() {
    let mut world = enforcing(1_000_000_000);
    assert_eq!(world.chat("json", HELLO).status, 200);
    let mut stream = world.connect();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-test: hang\r\ncontent-length: {}\r\n\r\n{HELLO}",
        HELLO.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    wait_until("the call at the provider", SOON, || {
        if world.provider.got().len() == 2 { Ok(()) } else { Err(String::new()) }
    })
    .unwrap();
    world.envoy.as_mut().unwrap().process.kill();
    world.envoy = None;
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200);
    let mut rows = world.rows(3);
    rows.sort_by_key(|row| row.sequence);
    assert_eq!((rows[1].outcome, rows[1].charge), (Outcome::Replayed, rows[1].reserve));
    assert_eq!(world.ledger.epochs(), 1);
    assert_eq!(world.ledger.settled(), 2 * COST + rows[1].reserve.usd.0);
}

#[test]
fn two_listeners_share_one_client() {
    let mut world = World::unstarted(policy(Enforcement::Enforce, &[budget(1_000_000)]), 3);
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(1);
    assert_eq!(world.ledger.epochs(), 1);
}

#[test]
fn an_epoch_ends_though_observed_calls_never_stop() {
    let mut observed: (PolicyKey, Budget) = budget(1);
    observed.1.enforcement = Enforcement::Observe;
    let mut world = World::new(policy(Enforcement::Enforce, &[observed]));
    let port = world.port;
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each takes five events and begins two after another: some are always in flight.
        for i in 0..3 {
            let over = &over;
            let sent = world.provider.events.clone();
            scope.spawn(move || {
                // Two events after the one before it: never all of them between two calls.
                wait_until("events", SOON, || {
                    let events = sent.load(std::sync::atomic::Ordering::Relaxed);
                    if events >= 2 * i { Ok(()) } else { Err(format!("{events} events")) }
                })
                .unwrap();
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let headers = [("content-type", "application/json"), ("x-test", "sse-slow")];
                    let path = "/v1/chat/completions";
                    let answer = plimsoll_sim::harness::http::request(
                        ("127.0.0.1", port),
                        "POST",
                        path,
                        &headers,
                        STREAM.as_bytes(),
                    );
                    assert_eq!(answer.map(|answer| answer.status).ok(), Some(200));
                }
            });
        }
        // Each has ended once and begun again.
        wait_got(&world, 6);
        world.ledger.stop();
        world.ledger.supersede("gateway-1");
        world.ledger.serve();
        let begun = wait_until("a new epoch", SOON, || {
            let text = world.log_text();
            if text.contains(" begins") && world.ledger.epochs() == 3 { Ok(()) } else { Err(text) }
        });
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        begun.unwrap();
    });
    world.wait_ready();
    let before = world.ledger.rows().len();
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(before + 1);
}

#[test]
fn a_gateway_that_ends_cleanly_returns_what_it_holds_and_closes_its_epoch() {
    let mut world = enforcing(1_000_000_000);
    for _ in 0..3 {
        assert_eq!(world.chat("json", HELLO).status, 200);
    }
    let envoy = world.envoy.as_mut().unwrap();
    envoy.process.terminate(SOON).unwrap();
    world.envoy = None;
    assert_eq!(world.ledger.rows().len(), 3, "{}", world.log_text());
    assert_eq!(world.ledger.outstanding(), (0, 0), "{}", world.log_text());
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(4);
    assert_eq!((world.ledger.settled(), world.ledger.epochs()), (4 * COST, 2));
}

#[test]
fn a_gateway_whose_epoch_was_closed_begins_a_new_one() {
    let mut world = enforcing(1_000_000_000);
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(1);
    let kill = |world: &mut World| {
        world.envoy.as_mut().unwrap().process.kill();
        world.envoy = None;
    };
    kill(&mut world);
    // Its disk is away, then comes back: meanwhile another log spoke for this gateway.
    let aside = world.dir.path().join("aside");
    std::fs::rename(world.log_dir(), &aside).unwrap();
    world.start();
    world.wait_ready();
    kill(&mut world);
    std::fs::remove_dir_all(world.log_dir()).unwrap();
    std::fs::rename(&aside, world.log_dir()).unwrap();
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200, "{}", world.log_text());
    assert_eq!(world.rows(2).len(), 2);
    assert_eq!(world.ledger.epochs(), 3);
}

#[test]
fn a_gateway_whose_close_is_lost_goes_on_in_its_epoch_and_loses_nothing() {
    let mut world = enforcing(1_000_000_000);
    for _ in 0..3 {
        assert_eq!(world.chat("json", HELLO).status, 200);
    }
    world.ledger.lose_close(true);
    let envoy = world.envoy.as_mut().unwrap();
    envoy.process.terminate(SOON).unwrap();
    world.envoy = None;
    assert_eq!((world.ledger.heard("close"), world.ledger.rows().len()), (1, 3), "{}", world.log_text());
    assert_eq!(world.ledger.outstanding(), (1, 0), "all is returned, but the epoch is open");
    world.ledger.lose_close(false);
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(4);
    assert_eq!((world.ledger.settled(), world.ledger.epochs()), (4 * COST, 1));
}
