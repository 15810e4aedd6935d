//! A request, read: how much it says, how much it wants, and which faults it orders.
//!
//! The prompt's text is measured, never kept.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use super::{Settings, UsageSaid};
use crate::trace::mix;

/// A chat completion request, as far as it matters here.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    messages: Vec<Message>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(default, borrow)]
    metadata: Option<Metadata<'a>>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(default, borrow)]
    sim_output_tokens: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: TextBytes,
}

/// The bytes of a message's text.
#[derive(Default)]
struct TextBytes(u64);

impl<'de> Deserialize<'de> for TextBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Content;
        impl<'de> Visitor<'de> for Content {
            type Value = TextBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of content parts")
            }
            fn visit_str<E>(self, text: &str) -> Result<TextBytes, E> {
                Ok(TextBytes(u64::try_from(text.len()).unwrap_or(u64::MAX)))
            }
            fn visit_unit<E>(self) -> Result<TextBytes, E> {
                Ok(TextBytes(0))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<TextBytes, A::Error> {
                #[derive(Deserialize)]
                struct Part {
                    #[serde(default)]
                    text: TextBytes,
                    #[serde(flatten)]
                    _rest: IgnoredAny,
                }
                let mut sum = 0;
                while let Some(part) = parts.next_element::<Part>()? {
                    sum += part.text.0;
                }
                Ok(TextBytes(sum))
            }
        }
        deserializer.deserialize_any(Content)
    }
}

/// Everything that decides an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub request_id: String,
    pub model: String,
    pub stream: bool,
    pub include_usage: bool,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// For each choice, reasoning included.
    pub output_tokens: u64,
    /// For each choice.
    pub reasoning_tokens: u64,
    pub choices: u64,
    /// The output was cut at the request's bound.
    pub cut: bool,
    pub first_token: Duration,
    pub per_token: Duration,
    pub tokens_per_event: u64,
    pub fault: Fault,
    pub usage: UsageSaid,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// This status, nothing billed.
    Fail(u16),
    /// Half of the answer.
    Truncate,
}

/// Why a request is not answered.
#[derive(Debug)]
pub(super) struct Malformed(pub String);

/// The most choices that a call may ask for, as with OpenAI.
const MAX_CHOICES: u64 = 128;
/// The most output tokens that are made up for a call, all choices together: it bounds the answer's memory.
const MAX_OUTPUT: u64 = 4_000_000;

/// Reads a request. `header` gives a header's value; `call` is the number of the call, for draws.
pub(super) fn read<'a>(
    body: &[u8],
    header: impl Fn(&str) -> Option<&'a str>,
    request_id: String,
    call: u64,
    settings: &Settings,
) -> Result<Ask, Malformed> {
    let Body { model, messages, stream, stream_options, max_tokens, max_completion_tokens, n, metadata } =
        serde_json::from_slice(body)
            .map_err(|error| Malformed(format!("the body is no chat completion: {error}")))?;
    let number = |name: &str| -> Result<Option<u64>, Malformed> {
        let Some(text) = header(name) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| Malformed(format!("header {name}: \"{text}\" is not a whole number")))
    };
    let said = metadata.and_then(|m| m.sim_output_tokens);
    let said = said.as_deref().map(|text| {
        text.parse::<u64>()
            .map_err(|_| Malformed(format!("metadata.sim_output_tokens: \"{text}\" is not a whole number")))
    });
    let asked = match number("x-sim-output-tokens")? {
        Some(asked) => asked,
        None => said.transpose()?.unwrap_or(settings.output_tokens),
    };
    let bound = max_completion_tokens.or(max_tokens).filter(|_| header("x-sim-ignore-max").is_none());
    let output_tokens = asked.min(bound.unwrap_or(u64::MAX));
    let choices = choices(n, output_tokens)?;
    let prompt_tokens = messages.iter().map(|m| m.content.0).sum::<u64>().div_ceil(4);
    let part = |whole: u64, percent: u64| whole.saturating_mul(percent.min(100)) / 100;
    let cached_tokens =
        number("x-sim-cached-tokens")?.unwrap_or(part(prompt_tokens, settings.cached_percent));
    let reasoning_tokens =
        number("x-sim-reasoning-tokens")?.unwrap_or(part(output_tokens, settings.reasoning_percent));
    let millis = |name: &str, default: Duration| -> Result<Duration, Malformed> {
        Ok(number(name)?.map_or(default, Duration::from_millis))
    };
    let struck = |rate: super::Rate, salt| {
        mix(call, settings.seed.wrapping_mul(8) + salt) % 1_000_000 < u64::from(rate.0)
    };
    let usage = match header("x-sim-usage") {
        Some("missing") => UsageSaid::Missing,
        Some("wrong") => UsageSaid::Wrong,
        Some("right") => UsageSaid::Right,
        Some(other) => {
            return Err(Malformed(format!("header x-sim-usage: \"{other}\" is not right, missing or wrong")));
        }
        None if struck(settings.missing_usage, 1) => UsageSaid::Missing,
        None if struck(settings.wrong_usage, 2) => UsageSaid::Wrong,
        None => UsageSaid::Right,
    };
    let status = number("x-sim-status")?.and_then(|s| u16::try_from(s).ok());
    let fault = match status {
        Some(status) if status != 200 => Fault::Fail(status),
        _ if header("x-sim-truncate").is_some() => Fault::Truncate,
        None if struck(settings.fail, 3) => Fault::Fail(settings.fail_status),
        None if struck(settings.truncate, 4) => Fault::Truncate,
        _ => Fault::None,
    };
    Ok(Ask {
        request_id,
        model: model.into_owned(),
        stream: stream.unwrap_or(false),
        include_usage: stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        prompt_tokens,
        cached_tokens: cached_tokens.min(prompt_tokens),
        output_tokens,
        reasoning_tokens: reasoning_tokens.min(output_tokens),
        choices,
        cut: output_tokens < asked,
        first_token: millis("x-sim-first-token-ms", settings.first_token)?,
        per_token: number("x-sim-per-token-us")?.map_or(settings.per_token, Duration::from_micros),
        tokens_per_event: number("x-sim-tokens-per-event")?.unwrap_or(settings.tokens_per_event).max(1),
        fault,
        usage,
    })
}

/// The choices of a call that wants `n`, each of `output_tokens`.
fn choices(n: Option<u64>, output_tokens: u64) -> Result<u64, Malformed> {
    let n = n.unwrap_or(1);
    if !(1..=MAX_CHOICES).contains(&n) {
        return Err(Malformed(format!("n is {n}; ask for 1 to {MAX_CHOICES} choices")));
    }
    let all = n.saturating_mul(output_tokens);
    if all > MAX_OUTPUT {
        return Err(Malformed(format!(
            "n ({n}) times output tokens ({output_tokens}) is {all}; the simulator makes up at most \
             {MAX_OUTPUT} for a call: ask for fewer, or lower max_tokens"
        )));
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(body: &str, headers: &[(&str, &'static str)]) -> Result<Ask, Malformed> {
        let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        read(body.as_bytes(), header, "id".into(), 0, &Settings::default())
    }

    #[test]
    fn prompt_tokens_are_the_texts_bytes_by_four_whatever_their_form() {
        let text = r#"{"model":"m","messages":[{"role":"user","content":"12345678"},{"role":"user","content":"\u00e9"}]}"#;
        assert_eq!(ask(text, &[]).unwrap().prompt_tokens, 3);
        let parts = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"12345678"},
            {"type":"image_url","image_url":{"url":"http://x"}}]},{"role":"assistant","content":null}]}"#;
        assert_eq!(ask(parts, &[]).unwrap().prompt_tokens, 2);
    }

    #[test]
    fn output_is_what_was_asked_for_and_at_most_what_the_body_allows() {
        let body =
            r#"{"model":"m","messages":[],"max_tokens":10,"n":2,"metadata":{"sim_output_tokens":"7"}}"#;
        let got = ask(body, &[]).unwrap();
        assert_eq!((got.output_tokens, got.choices, got.cut), (7, 2, false));
        let got = ask(body, &[("x-sim-output-tokens", "99")]).unwrap();
        assert_eq!((got.output_tokens, got.cut), (10, true));
        let got = ask(body, &[("x-sim-output-tokens", "99"), ("x-sim-ignore-max", "1")]).unwrap();
        assert_eq!(got.output_tokens, 99);
    }

    #[test]
    fn no_call_gets_more_output_than_fits_in_memory() {
        let tokens = |n: u64, each: u64| {
            let body = format!(r#"{{"model":"m","messages":[],"n":{n},"max_tokens":{each}}}"#);
            ask(&body, &[("x-sim-output-tokens", "18446744073709551615")]).map(|ask| ask.choices)
        };
        assert_eq!(tokens(128, 31_250).unwrap(), 128);
        let Malformed(why) = tokens(128, 31_251).unwrap_err();
        assert_eq!(
            why,
            "n (128) times output tokens (31251) is 4000128; the simulator makes up at most 4000000 for a \
             call: ask for fewer, or lower max_tokens"
        );
        assert!(tokens(2, u64::MAX).is_err());
        for n in [0, 129] {
            let Malformed(why) = tokens(n, 1).unwrap_err();
            assert_eq!(why, format!("n is {n}; ask for 1 to 128 choices"));
        }
    }

    #[test]
    fn a_request_that_is_none_is_refused_in_words() {
        assert!(ask("{", &[]).is_err());
        assert!(ask(r#"{"model":"m"}"#, &[]).is_err());
        assert!(ask(r#"{"model":"m","model":"n","messages":[]}"#, &[]).is_err());
        let Malformed(why) =
            ask(r#"{"model":"m","messages":[]}"#, &[("x-sim-output-tokens", "x")]).unwrap_err();
        assert_eq!(why, "header x-sim-output-tokens: \"x\" is not a whole number");
    }
}
