//! The admission log can't be written: no room on its device, or nothing taken at all.

use super::*;
use plimsoll_sim::harness::http;
use std::fs;
use std::path::Path;
use std::process::Command;

fn segment_length(world: &World) -> u64 {
    let entries = fs::read_dir(world.log_dir()).unwrap().map(|entry| entry.unwrap());
    let segments = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "log"));
    segments.map(|segment| segment.metadata().unwrap().len()).sum()
}

fn ready(world: &World) -> (u16, String) {
    let page = http::get(("127.0.0.1", world.metrics), "/ready").unwrap();
    (page.status, page.body)
}

/// `stop` makes the log unwritable, `go` makes it writable again.
fn refuses_until_it_can_be_written(world: &mut World, stop: impl Fn(&World), go: impl Fn(&World)) {
    assert_eq!(world.chat("json", HELLO).status, 200, "{}", world.log_text());
    world.rows(1);
    // One call is under way: its settlement has to wait.
    let mut under_way = send(world, "sse-slow", STREAM);
    wait_got(world, 2);
    stop(world);
    for _ in 0..3 {
        let answer = world.chat("json", HELLO);
        assert_eq!((answer.status, answer.header("x-plimsoll-reason")), (503, Some("ledger_unavailable")));
        assert!(answer.body.contains("can't write its admission log"), "{}", answer.body);
    }
    let (status, why) = ready(world);
    assert!(status == 503 && why.contains("the admission log can't be written"), "{status} {why}");
    let mut answer = String::new();
    under_way.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[DONE]"), "{answer}");
    wait_metric(world, "plimsoll_gateway_log_delayed", "1");
    assert_eq!(ready(world).0, 503);
    assert_eq!(world.provider.got().len(), 2, "what was refused did not leave");
    go(world);
    // Nobody calls: the gateway finds out by itself.
    world.wait_ready();
    let rows = world.rows(2);
    assert!(rows.iter().all(|row| row.charge == charge(COST)), "{rows:?}");
    stop(world);
    assert_eq!(world.chat("json", HELLO).status, 503);
    assert_eq!(ready(world).0, 503);
    go(world);
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200, "{}", world.log_text());
    // What was written is a log that proves everything.
    world.envoy.as_mut().unwrap().process.kill();
    world.envoy = None;
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200, "{}", world.log_text());
    let rows = world.rows(4);
    assert_eq!((rows.len(), world.ledger.settled(), world.ledger.epochs()), (4, 4 * COST, 1));
}

fn limit(world: &World, bytes: Option<u64>) {
    world.envoy.as_ref().unwrap().process.limit_files(bytes).unwrap();
}

#[test]
fn a_gateway_whose_log_finds_no_room_refuses_says_why_and_goes_on_without_a_restart() {
    let mut world = enforcing(1_000_000_000);
    // The next record fits in part, as at the end of a device.
    let stop = |world: &World| limit(world, Some(segment_length(world) + 10));
    refuses_until_it_can_be_written(&mut world, stop, |world| limit(world, None));
}

#[test]
fn a_gateway_whose_log_takes_nothing_refuses_says_why_and_goes_on_without_a_restart() {
    let mut world = enforcing(1_000_000_000);
    refuses_until_it_can_be_written(&mut world, |world| limit(world, Some(0)), |world| limit(world, None));
}

/// A file system of its own; only root may have one.
struct Device<'a>(&'a Path);

impl<'a> Device<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Self(at))
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_gateway_whose_device_is_full_refuses_says_why_and_goes_on_without_a_restart() {
    let mut world = World::unstarted(policy(Enforcement::Enforce, &[budget(1_000_000_000)]), 1);
    let directory = world.log_dir();
    let Some(_device) = Device::mount(&directory) else {
        eprintln!("not root: what a full device does is tested by a limit on the size of files alone");
        return;
    };
    world.start();
    world.wait_ready();
    let filler = directory.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    // The segment's last page has room for some.
    let mut passed = 0;
    let refused = loop {
        let answer = world.chat("json", HELLO);
        if answer.status != 200 {
            break answer;
        }
        passed += 1;
        assert!(passed < 100, "4 KiB hold no hundred records");
    };
    assert_eq!(refused.status, 503);
    assert!(refused.body.contains("can't write its admission log"), "{}", refused.body);
    assert_eq!(ready(&world).0, 503);
    fs::remove_file(&filler).unwrap();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200, "{}", world.log_text());
    let rows = world.rows(passed + 1);
    assert!(rows.len() == passed + 1 && rows.iter().all(|row| row.charge == charge(COST)), "{rows:?}");
    world.envoy = None;
}

#[test]
fn an_observing_gateway_stays_ready_whatever_its_log_does() {
    let world = World::new(policy(Enforcement::Observe, &[budget(1)]));
    assert_eq!(world.chat("json", &HELLO.replace("assistant", "small")).status, 200);
    limit(&world, Some(0));
    assert_eq!(world.chat("json", &HELLO.replace("assistant", "small")).status, 200);
    let failures = world.metric("plimsoll_gateway_log_failures_total");
    assert!(!failures.is_empty() && !failures.ends_with(" 0"), "{failures}");
    assert_eq!(ready(&world).0, 200);
}
