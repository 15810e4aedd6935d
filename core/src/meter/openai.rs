//! OpenAI Chat Completions: what its answers say of usage.
//!
//! `prompt_tokens` includes the cached ones, `completion_tokens` the reasoning; here they become
//! disjoint classes. Numbers that can't be true say nothing: the call then settles at its reserve.

use crate::usage::Usage;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// What a `usage` member says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Null: nothing yet.
    Null,
    /// These tokens.
    Tokens(Usage),
    /// Something that can't be true.
    Nonsense,
}

impl Said {
    /// What holds after it: the last one that was not null.
    pub(super) fn after(self, before: Option<Usage>) -> Option<Usage> {
        match self {
            Self::Null => before,
            Self::Tokens(usage) => Some(usage),
            Self::Nonsense => None,
        }
    }
}

/// The largest number that every JSON reader keeps exactly; no call has so many tokens.
const MOST_TOKENS: u64 = 1 << 53;

#[derive(Deserialize)]
struct Tokens {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
}

/// Reads the value of a `usage` member.
pub(super) fn usage(value: &[u8]) -> Said {
    let Ok(tokens) = serde_json::from_slice::<Option<Tokens>>(value) else { return Said::Nonsense };
    let Some(tokens) = tokens else { return Said::Null };
    let Tokens {
        prompt_tokens,
        completion_tokens,
        total_tokens,
        prompt_tokens_details,
        completion_tokens_details,
    } = tokens;
    let cached = prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
    let reasoning = completion_tokens_details.and_then(|details| details.reasoning_tokens).unwrap_or(0);
    let all = [prompt_tokens, completion_tokens, total_tokens.unwrap_or(0), cached, reasoning];
    if all.iter().any(|count| *count > MOST_TOKENS) {
        return Said::Nonsense;
    }
    // Some who speak OpenAI's dialect (xAI, Gemini) leave reasoning out of completion_tokens, and bill it.
    let rest = total_tokens.unwrap_or(0).saturating_sub(prompt_tokens);
    let output = completion_tokens.max(rest);
    let cached_input = cached.min(prompt_tokens);
    Said::Tokens(Usage {
        input: prompt_tokens - cached_input,
        cached_input,
        cache_write: 0,
        output,
        reasoning: reasoning.min(output),
    })
}

/// One event of a stream, as far as usage goes.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    usage: Option<&'a RawValue>,
    /// Absent or `[]`: the event carries no part of an answer.
    #[serde(default)]
    choices: Option<Emptiness>,
}

impl<'a> Chunk<'a> {
    /// The event whose data is `data`; `None` if it is no JSON object.
    pub(super) fn read(data: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(data).ok()
    }

    /// Its `usage` member's value.
    pub(super) fn usage(&self) -> Option<&'a str> {
        self.usage.map(RawValue::get)
    }

    /// Whether it is the event that `include_usage` adds: usage, and `choices` that is there and empty.
    pub(super) fn is_usage_event(&self) -> bool {
        self.usage().is_some_and(|usage| usage.starts_with('{')) && self.choices == Some(Emptiness(true))
    }
}

/// A value that is there, be it null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Whether an array is empty, without keeping it.
#[derive(Debug, PartialEq, Eq)]
struct Emptiness(bool);

impl<'de> Deserialize<'de> for Emptiness {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw: &RawValue = Deserialize::deserialize(deserializer)?;
        let inner = raw.get().strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        Ok(Self(inner.is_some_and(|inner| inner.trim_ascii().is_empty())))
    }
}
