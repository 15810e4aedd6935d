//! A gateway's slices when policies follow one another.

use plimsoll_core::account::{Charge, LimitKey, Unit};
use plimsoll_core::gateway::{Admission, Gateway};
use plimsoll_core::ids::{Epoch, ObjectName, UnixMs};
use plimsoll_core::policy::Bounds;

fn limit(window: &str) -> LimitKey {
    LimitKey::new(ObjectName::new("finance", "all"), "total".into(), Unit::Usd, window.into())
}

#[test]
fn a_call_decided_by_a_policy_that_was_replaced_is_not_admitted_for_nothing() {
    let gateway = Gateway::new("g".into(), Epoch(1));
    let always = || vec![Bounds { start: UnixMs(0), end: UnixMs::NEVER }];
    let policy = |window: &str| ([limit(window)], [(window.to_owned(), always())]);
    let reserve = Charge { requests: 1, ..Charge::default() };
    let (old, bounds) = policy("Total@UTC");
    gateway.set_policy(old.clone(), bounds);
    let (new, bounds) = policy("Year@UTC");
    gateway.set_policy(new, bounds);
    match gateway.admit(&old, &reserve, UnixMs(1)) {
        Admission::NoWindow(limit) => assert_eq!(limit, old[0]),
        other => panic!("{other:?}"),
    }
}
