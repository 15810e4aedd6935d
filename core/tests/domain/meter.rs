//! The meter: the same answer whatever the chunks, and never a wrong one.

use plimsoll_core::meter::{Framing, Measured, Meter, Stripper};
use plimsoll_core::policy::Dialect;
use plimsoll_core::usage::Usage;
use proptest::prelude::*;

fn measure(framing: Framing, chunks: &[&[u8]]) -> Measured {
    let mut meter = Meter::new(Dialect::OpenAI, framing);
    for chunk in chunks {
        meter.push(chunk);
    }
    meter.finish()
}

fn json(body: &str) -> Measured {
    let whole = measure(Framing::Json, &[body.as_bytes()]);
    let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
    assert_eq!(measure(Framing::Json, &bytes), whole);
    // Past what is kept, the exact scanner reads: it must say the same of the same object.
    let padded = format!("{}{body}", " ".repeat(70_000));
    let padded: Vec<&[u8]> = padded.as_bytes().chunks(7).collect();
    assert_eq!(measure(Framing::Json, &padded), whole, "{body}");
    whole
}

fn sse(body: &str) -> Measured {
    let whole = measure(Framing::Sse, &[body.as_bytes()]);
    let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
    assert_eq!(measure(Framing::Sse, &bytes), whole);
    whole
}

fn strip(chunks: &[&[u8]]) -> String {
    let (mut stripper, mut out) = (Stripper::default(), Vec::new());
    for chunk in chunks {
        stripper.push(chunk, &mut out);
    }
    stripper.finish(&mut out);
    String::from_utf8(out).unwrap()
}

const TOKENS: &str = r#"{"prompt_tokens":100,"completion_tokens":30,"total_tokens":130,
    "prompt_tokens_details":{"cached_tokens":40,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":10}}"#;
const USAGE: Usage = Usage { input: 60, cached_input: 40, cache_write: 0, output: 30, reasoning: 10 };

#[test]
fn classes_are_disjoint() {
    let body = format!(
        r#"{{"id":"x","choices":[{{"message":{{"content":"hi"}}}}],"usage":{TOKENS},"service_tier":"default"}}"#
    );
    assert_eq!(json(&body), Measured { usage: Some(USAGE), complete: true });
    assert_eq!(json(&format!(r#"{{"usage" : {TOKENS} }} "#)).usage, Some(USAGE));
}

#[test]
fn only_the_answers_own_usage_counts() {
    for body in [
        // In a string, in an object, in an array, as a value; a key with an escaped quote before it.
        r#"{"a":"\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9}"}"#,
        r#"{"a":{"usage":{"prompt_tokens":9,"completion_tokens":9}}}"#,
        r#"{"a":[{"usage":{"prompt_tokens":9,"completion_tokens":9}}]}"#,
        r#"[{"usage":{"prompt_tokens":9,"completion_tokens":9}}]"#,
        r#"{"a":"usage","b":{"prompt_tokens":9,"completion_tokens":9}}"#,
        r#"{"x\"usage":{"prompt_tokens":9,"completion_tokens":9}}"#,
        r#"{"usages":{"prompt_tokens":9,"completion_tokens":9}}"#,
        r#"{"usage":null}"#,
        "{}",
        "",
    ] {
        assert_eq!(json(body).usage, None, "{body}");
    }
    let decoy = r#"{"usage":{"prompt_tokens":1,"completion_tokens":2},"a":{"usage":{"prompt_tokens":9,"completion_tokens":9}},"b":"\"usage\":"}"#;
    assert_eq!(json(decoy).usage, Some(Usage { input: 1, output: 2, ..Usage::default() }));
}

#[test]
fn absurd_numbers_say_nothing() {
    for usage in [
        r#"{"prompt_tokens":-1,"completion_tokens":2}"#,
        r#"{"prompt_tokens":1.5,"completion_tokens":2}"#,
        r#"{"prompt_tokens":1e99,"completion_tokens":2}"#,
        r#"{"prompt_tokens":9007199254740993,"completion_tokens":2}"#,
        r#"{"prompt_tokens":99999999999999999999999999,"completion_tokens":2}"#,
        r#"{"prompt_tokens":"1","completion_tokens":2}"#,
        r#"{"prompt_tokens":1}"#,
        r#"{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":-5}}"#,
        "[]",
        "7",
        "\"\"",
    ] {
        assert_eq!(json(&format!(r#"{{"usage":{usage}}}"#)).usage, None, "{usage}");
        let stream = format!(
            "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":1}}}}\n\ndata: {{\"usage\":{usage}}}\n\n"
        );
        assert_eq!(sse(&stream).usage, None, "{usage}");
    }
    let clamped = json(
        r#"{"usage":{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":50},"completion_tokens_details":{"reasoning_tokens":70}}}"#,
    );
    assert_eq!(clamped.usage, Some(Usage { cached_input: 1, output: 2, reasoning: 2, ..Usage::default() }));
}

#[test]
fn reasoning_that_only_the_total_counts_is_output() {
    let said = json(r#"{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":115}}"#);
    assert_eq!(said.usage, Some(Usage { input: 10, output: 105, ..Usage::default() }));
}

#[test]
fn an_answer_that_breaks_off_is_not_complete() {
    assert!(!json(r#"{"usage":{"prompt_tokens":1,"completion_tokens":2},"#).complete);
    assert!(!json(r#"{"usage":{"prompt_tokens":1,"comple"#).complete);
    assert!(!json(r#"{"usage":{"prompt_tokens":1,"completion_tokens":2}} trailing"#).complete);
    let stream =
        "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n";
    assert_eq!(
        sse(stream),
        Measured { usage: Some(Usage { input: 1, output: 2, ..Usage::default() }), complete: false }
    );
}

#[test]
fn an_eight_megabyte_answer_is_metered_wherever_usage_stands() {
    let text = "lorem \\\"usage\\\": ipsum ".repeat(400_000);
    for body in [
        format!(r#"{{"usage":{TOKENS},"choices":["{text}"]}}"#),
        format!(r#"{{"choices":["{text}"],"usage":{TOKENS},"id":"x"}}"#),
    ] {
        for size in [1 << 14, 65_537, body.len()] {
            let chunks: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
            assert_eq!(measure(Framing::Json, &chunks), Measured { usage: Some(USAGE), complete: true });
        }
    }
}

#[test]
fn a_usage_that_never_ends_keeps_no_memory_and_says_nothing() {
    let mut meter = Meter::new(Dialect::OpenAI, Framing::Json);
    meter.push(b"{\"usage\":{\"a\":\"");
    for _ in 0..1_000 {
        meter.push(&[b'x'; 10_000]);
    }
    assert!(std::mem::size_of_val(&meter) < 1_000);
    meter.push(b"\"}}");
    assert_eq!(meter.finish(), Measured { usage: None, complete: true });
}

/// A stream as OpenAI writes it with `include_usage`, and as it writes it without.
fn stream(end: &str) -> (String, String) {
    let (mut with, mut without) = (String::new(), String::new());
    for word in ["Hello", " \\\"usage\\\":null ", " \u{fc}ber"] {
        for (out, usage) in [(&mut with, ",\"usage\":null"), (&mut without, "")] {
            *out += &format!(
                r#"data: {{"id":"c","choices":[{{"index":0,"delta":{{"content":"{word}"}}}}]{usage}}}{end}{end}"#
            );
            // Usage need not be the last member, nor stand without space.
            let usage = usage.replace(":null", " : null");
            *out += &format!(
                r#"data: {{"id":"c","choices":[{{"index":0,"delta":{{}}}}]{usage},"obfuscation":"x"}}{end}{end}"#
            );
        }
    }
    with += &format!(r#"data: {{"id":"c","choices":[],"usage":{}}}{end}{end}"#, TOKENS.replace('\n', " "));
    for out in [&mut with, &mut without] {
        *out += &format!(": comment{end}{end}data: [DONE]{end}{end}");
    }
    (with, without)
}

#[test]
fn a_client_that_asked_for_no_usage_sees_what_it_would_have_seen() {
    for end in ["\n", "\r\n"] {
        let (with, without) = stream(end);
        assert_eq!(strip(&[with.as_bytes()]), without);
        assert_eq!(strip(&[without.as_bytes()]), without);
        assert_eq!(sse(&with), Measured { usage: Some(USAGE), complete: true });
        assert_eq!(sse(&without), Measured { usage: None, complete: true });
    }
}

#[test]
fn the_stripper_leaves_what_is_not_ours() {
    for line in [
        // A first event with empty choices and no usage (Azure's content filter), usage beside an answer,
        // usage within, and lines that are no JSON.
        r#"data: {"choices":[],"prompt_filter_results":[{"usage":null}]}"#,
        r#"data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#,
        r#"data: {"choices":[{"usage":null}]}"#,
        r#"data: {"choices":[{"a":1,"usage":null}]}"#,
        r#"data: {"x":"\"usage\"","choices":[]}"#,
        r#"data: {"usage":null"#,
        r#"event: "usage":null"#,
    ] {
        let stream = format!("{line}\n\n");
        assert_eq!(strip(&[stream.as_bytes()]), stream);
    }
    assert_eq!(strip(&[b"data:{\"usage\":null,\"id\":\"x\"}\n\n"]), "data:{\"id\":\"x\"}\n\n");
    assert_eq!(strip(&[b"data:{\"usage\":null}\n\n"]), "data:{}\n\n");
    // A stream whose last line has no end.
    assert_eq!(strip(&[b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}"]), "");
}

#[test]
fn a_line_too_long_to_keep_passes_untouched() {
    let long = format!("data: {{\"x\":\"{}\",\"usage\":null}}\n\n", "y".repeat(700_000));
    let stream = format!(
        "{long}data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":1}}}}\n\ndata: [DONE]\n\n"
    );
    let chunks: Vec<&[u8]> = stream.as_bytes().chunks(10_000).collect();
    assert_eq!(strip(&chunks), format!("{long}data: [DONE]\n\n"));
    assert!(measure(Framing::Sse, &chunks).usage.is_some());
}

#[test]
fn framing_is_what_the_answer_says() {
    assert_eq!(Framing::of(Some("text/event-stream; charset=utf-8"), false), Framing::Sse);
    assert_eq!(Framing::of(Some("application/json"), true), Framing::Json);
    assert_eq!(Framing::of(None, true), Framing::Sse);
}

/// `body` cut at `cuts`.
fn cut<'a>(body: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    at.extend([0, body.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect()
}

/// Any JSON, with keys and strings that look like usage.
fn value() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        Just("\"usage\"".to_owned()),
        Just("\"\\\"usage\\\":{\"".to_owned()),
        Just("\"usage\\\\\"".to_owned()),
        "[a-z\\\\\"{}:,\u{e9}]{0,8}".prop_map(|text| serde_json::Value::from(text).to_string()),
    ];
    let leaf = prop_oneof![
        text.clone(),
        Just("null".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        (0..500_u64, 0..500_u64)
            .prop_map(|(p, c)| format!("{{\"prompt_tokens\":{p},\"completion_tokens\":{c}}}")),
    ];
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            proptest::collection::btree_map(text.clone(), inner, 0..4).prop_map(|map| {
                let members: Vec<String> = map.iter().map(|(key, value)| format!("{key} :{value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_json_is_read_as_a_parser_reads_it(body in value(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
        let number = |key: &str| parsed.as_object().and_then(|o| o.get("usage")).and_then(|u| u.get(key)).and_then(serde_json::Value::as_u64);
        let expected = number("prompt_tokens").zip(number("completion_tokens"));
        let chunks = cut(body.as_bytes(), &cuts);
        let measured = measure(Framing::Json, &chunks);
        prop_assert_eq!(measured.usage.map(|u| (u.input, u.output)), expected);
        prop_assert_eq!(measured.complete, parsed.is_object());
        // The same through the scanner.
        let padded = format!("{}{body}", "\n".repeat(66_000));
        let measured = measure(Framing::Json, &cut(padded.as_bytes(), &cuts));
        prop_assert_eq!(measured.usage.map(|u| (u.input, u.output)), expected);
    }

    #[test]
    fn no_bytes_break_a_meter_and_no_cut_changes_it(
        body in proptest::collection::vec(prop_oneof![any::<u8>().prop_map(|b| vec![b]), proptest::sample::select(vec![
            b"\"usage\"".to_vec(), b":null".to_vec(), b"data:".to_vec(), b"data: {".to_vec(), b"\n".to_vec(), b"\r\n\r\n".to_vec(),
            b"{".to_vec(), b"}".to_vec(), b",".to_vec(), b"\\".to_vec(), b"\"".to_vec(), b"[DONE]".to_vec(), b"\"choices\":[]".to_vec(),
        ])], 0..60).prop_map(|parts| parts.concat()),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let chunks = cut(&body, &cuts);
        for framing in [Framing::Json, Framing::Sse] {
            prop_assert_eq!(measure(framing, &chunks), measure(framing, &[&body]));
        }
        let (mut one, mut many) = (Vec::new(), Vec::new());
        let (mut a, mut b) = (Stripper::default(), Stripper::default());
        a.push(&body, &mut one);
        a.finish(&mut one);
        for chunk in &chunks {
            b.push(chunk, &mut many);
        }
        b.finish(&mut many);
        prop_assert_eq!(one, many);
    }

    #[test]
    fn a_stream_cut_anywhere_is_stripped_and_metered_alike(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12), crlf: bool) {
        let (with, without) = stream(if crlf { "\r\n" } else { "\n" });
        let chunks = cut(with.as_bytes(), &cuts);
        prop_assert_eq!(strip(&chunks), without);
        prop_assert_eq!(measure(Framing::Sse, &chunks), Measured { usage: Some(USAGE), complete: true });
    }
}
