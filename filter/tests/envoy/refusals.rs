//! What is refused, and in which words.

use super::*;

#[test]
fn wrong_requests_are_refused_in_the_clients_dialect() {
    let world = enforcing(1_000_000);
    let refused: &[(&[u8], u16, &str)] = &[
        (br#"{"model":"assistant","model":"large","messages":[]}"#, 400, "stands twice"),
        (b"{\"model\":\"assistant\xff\"}", 400, "not UTF-8"),
        (b"", 400, "no body"),
        (b"[]", 400, "not a JSON object"),
        (br#"{"model":"nobody","messages":[]}"#, 404, "model_not_found"),
    ];
    for (body, status, says) in refused {
        let answer = world.post(&[], body);
        let shown = String::from_utf8_lossy(body);
        assert_eq!(answer.status, *status, "{shown}: {}", answer.body);
        assert!(answer.body.contains(says) && answer.body.contains(r#""error""#), "{shown}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    assert!(world.provider.got().is_empty(), "nothing was sent");
    let metric = world.metric("plimsoll_gateway_refused");
    assert!(metric.contains("kind=\"invalid_request\"} 4"), "{metric}");
}

#[test]
fn a_budget_that_is_used_up_blocks_and_says_so() {
    // One call reserves its bytes and 1,000 output tokens at 4: about 4,100. It costs 39.
    let world = enforcing(4_300);
    let mut answers: Vec<_> = (0..20).map(|_| world.chat("json", HELLO)).collect();
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((1..20).contains(&passed), "{passed} of 20 passed: {}", answers[0].body);
    let last = answers.pop().unwrap();
    assert_eq!(last.status, 429, "{}", last.body);
    assert!(last.body.contains("budget_exceeded") && last.body.contains("#ai-platform"), "{}", last.body);
    assert_eq!(last.header("x-should-retry"), Some("false"));
    assert_eq!(last.header("x-plimsoll-budget"), Some("finance/all"));
    let rows = world.rows(passed);
    assert_eq!((rows.len(), world.ledger.settled()), (passed, COST * i64::try_from(passed).unwrap()));
    assert_eq!(world.provider.got().len(), passed);
    let refused = 20 - passed;
    wait_until("the decisions", SOON, || {
        let decisions = world.ledger.decisions();
        if decisions.len() == refused { Ok(()) } else { Err(format!("{} of {refused}", decisions.len())) }
    })
    .unwrap();
    let decision = world.ledger.decisions().pop().unwrap();
    assert_eq!((decision.reason.as_str(), decision.stage.as_str()), ("budget_exceeded", "Block"));
    assert_eq!(decision.accounts.len(), 1);
}
