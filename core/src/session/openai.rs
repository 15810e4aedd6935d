//! OpenAI Chat Completions: what a request's body says, and the edits that change it in place.
//!
//! One pass, no tree: what decides is read, everything else is skipped, and positions in the body become
//! edits. What could be read two ways is noted as invalid (a key twice, a key that differs in case
//! only): a budget must hold for whatever the server understands.
//!
//! Output bound. Where an enforcing budget matches, every output key that the client sent is lowered;
//! where it sent none, `max_completion_tokens` is added: OpenAI's reasoning models refuse `max_tokens`,
//! vLLM, SGLang and llama.cpp know both. A server that ignores it runs past its reserve, and the debt
//! names it; then the route's clients must send `max_tokens` themselves.
//!
//! Input bound. Text is at most a token a byte. Parts that are not text, and a chat template of the
//! client's own, are not bounded by bytes: they take the model's context. Answers in audio, web search,
//! hosted tools, other models and paid service tiers are billed apart from the token prices: unpriced.

use super::Edit;
use crate::refusal::{Invalid, repeated};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// What a body says, as far as it decides something.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// The model or route.
    pub model: Cow<'a, str>,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// How many answers, each as long as the output bound.
    pub choices: u64,
    /// The user id.
    pub user: Option<Cow<'a, str>>,
    /// Output tokens that no bound covers: a rejected prediction is billed as output.
    pub predicted: u64,
    /// What is not bounded by bytes.
    pub unbounded: Option<&'static str>,
    /// What is billed apart from tokens, or at other rates.
    pub apart: Option<&'static str>,
    /// What is wrong, though the model is known: a call that may not be refused goes on without it.
    pub invalid: Option<Invalid>,
    model_at: Span,
    max_tokens: Option<Count>,
    max_completion_tokens: Option<Count>,
    stream_options: StreamOptions,
    /// Where the object's closing brace stands.
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: usize,
    end: usize,
}

/// A number that may be null.
#[derive(Clone, Copy, Debug)]
struct Count {
    at: Span,
    value: Option<u64>,
}

#[derive(Debug)]
enum StreamOptions {
    Absent,
    /// `null`.
    Null(Span),
    /// An object; where its brace opens, whether it has members, and its `include_usage`.
    Object {
        open: usize,
        empty: bool,
        include_usage: Option<(Span, bool)>,
    },
}

macro_rules! fields {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// The keys that are read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Field { $($variant),* }

        const FIELDS: &[(Field, &str)] = &[$((Field::$variant, $name)),*];

        fn field(name: &str) -> Option<Field> {
            match name { $($name => Some(Field::$variant),)* _ => None }
        }
    };
}

fields! {
    Model = "model",
    Messages = "messages",
    Stream = "stream",
    StreamOptions = "stream_options",
    MaxTokens = "max_tokens",
    MaxCompletionTokens = "max_completion_tokens",
    N = "n",
    BestOf = "best_of",
    User = "user",
    SafetyIdentifier = "safety_identifier",
    Prediction = "prediction",
    Tools = "tools",
    ServiceTier = "service_tier",
    Modalities = "modalities",
    Audio = "audio",
    ChatTemplate = "chat_template",
    WebSearchOptions = "web_search_options",
    SearchParameters = "search_parameters",
    Plugins = "plugins",
    Models = "models",
}

impl Field {
    fn name(self) -> &'static str {
        FIELDS.iter().find(|(field, _)| *field == self).map_or("", |(_, name)| name)
    }
}

/// The values of the keys that are read, raw.
#[derive(Default)]
struct Fields<'a> {
    raw: [Option<&'a RawValue>; FIELDS.len()],
    /// In `messages`.
    unbounded: Option<&'static str>,
    invalid: Option<Invalid>,
}

impl<'a> Fields<'a> {
    /// The value, unless it is absent or null.
    fn get(&self, field: Field) -> Option<&'a RawValue> {
        self.raw[field as usize].filter(|raw| raw.get() != "null")
    }

    fn wrong(&mut self, field: Field, wanted: &'static str) {
        self.invalid.get_or_insert(Invalid::Field { field: field.name(), wanted });
    }

    /// The value as a `T`; of another type it is wrong, and absent.
    fn typed<T: Deserialize<'a>>(&mut self, field: Field, wanted: &'static str) -> Option<T> {
        let value = serde_json::from_str(self.get(field)?.get());
        if value.is_err() {
            self.wrong(field, wanted);
        }
        value.ok()
    }

    /// A whole number; what exceeds the type is the largest.
    fn count(&mut self, field: Field, least: u64) -> Option<u64> {
        let digits = self.get(field)?.get();
        let value =
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().unwrap_or(u64::MAX));
        let value = value.filter(|value| *value >= least);
        if value.is_none() {
            self.wrong(
                field,
                if least == 0 { "a whole number of at least 0" } else { "a whole number of at least 1" },
            );
        }
        value
    }
}

impl<'a> Request<'a> {
    /// Reads `body`.
    ///
    /// # Errors
    /// What can't be understood at all: then there is no model to go by.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Invalid> {
        if body.is_empty() {
            return Err(Invalid::Empty);
        }
        let text = std::str::from_utf8(body).map_err(|error| Invalid::NotUtf8(error.valid_up_to()))?;
        if !text.trim_ascii_start().starts_with('{') {
            let any: Result<IgnoredAny, _> = serde_json::from_str(text);
            return Err(any.map_or_else(not_json, |_| Invalid::NotAnObject));
        }
        let mut fields: Fields<'a> = serde_json::from_str(text).map_err(not_json)?;
        let span = |raw: &RawValue| {
            // Raw values borrow from `body`, so this is their position in it.
            let start = raw.get().as_ptr().addr() - body.as_ptr().addr();
            Span { start, end: start + raw.get().len() }
        };
        let model_at = fields.raw[Field::Model as usize].ok_or(Invalid::NoModel)?;
        let text_of = |raw: &'a RawValue| {
            let text: Result<Text<'a>, _> = serde_json::from_str(raw.get());
            text.map(|text| text.0)
        };
        let model = text_of(model_at).map_err(|_| Invalid::Field { field: "model", wanted: "a string" })?;
        let user = |fields: &mut Fields<'a>, field| {
            let user: Option<Text<'a>> = fields.typed(field, "a string");
            user.map(|user| user.0).filter(|user| !user.is_empty())
        };
        let safety_identifier = user(&mut fields, Field::SafetyIdentifier);
        let user = user(&mut fields, Field::User);
        let output = |fields: &mut Fields<'a>, field| {
            let value = fields.count(field, 0);
            fields.raw[field as usize].map(|raw| Count { at: span(raw), value })
        };
        let max_tokens = output(&mut fields, Field::MaxTokens);
        let max_completion_tokens = output(&mut fields, Field::MaxCompletionTokens);
        let choices = fields.count(Field::N, 1).unwrap_or(1).max(fields.count(Field::BestOf, 1).unwrap_or(1));
        let stream_options = stream_options(&mut fields, span);
        Ok(Self {
            model,
            stream: fields.typed(Field::Stream, "a boolean").unwrap_or(false),
            choices,
            user: safety_identifier.or(user),
            predicted: fields.get(Field::Prediction).map_or(0, |raw| raw.get().len() as u64),
            apart: billed_apart(&mut fields),
            unbounded: fields.unbounded.or(fields.get(Field::ChatTemplate).map(|_| "chat_template")),
            model_at: span(model_at),
            max_tokens,
            max_completion_tokens,
            stream_options,
            end: body.iter().rposition(|byte| *byte == b'}').unwrap_or(body.len()),
            invalid: fields.invalid,
        })
    }

    /// The client's own output bound.
    pub(super) fn max_output(&self) -> Option<u64> {
        let both = [self.max_tokens, self.max_completion_tokens];
        both.into_iter().flatten().filter_map(|count| count.value).min()
    }

    /// Whether the client asks for usage in its stream.
    pub(super) fn asks_usage(&self) -> bool {
        matches!(self.stream_options, StreamOptions::Object { include_usage: Some((_, true)), .. })
    }

    /// What changes the body into the one to send: to `model`, with usage in its stream, and with at most
    /// `most` output tokens where that is given.
    pub(super) fn edits(&self, model: &str, most: Option<u64>) -> Vec<Edit> {
        let mut edits = Vec::new();
        let mut append = String::new();
        let mut replace = |at: Span, text: String| edits.push(Edit { start: at.start, end: at.end, text });
        if self.model != model {
            replace(self.model_at, serde_json::Value::from(model).to_string());
        }
        if let Some(most) = most {
            let sent = [self.max_tokens, self.max_completion_tokens].into_iter().flatten();
            let mut bounded = false;
            for count in sent {
                match count.value {
                    Some(value) if value <= most => {}
                    Some(_) => replace(count.at, most.to_string()),
                    None => continue,
                }
                bounded = true;
            }
            match self.max_completion_tokens {
                _ if bounded => {}
                // A second key would be a duplicate: the null itself is replaced.
                Some(Count { at, value: None }) => replace(at, most.to_string()),
                Some(Count { value: Some(_), .. }) | None => {
                    append += &format!(",\"max_completion_tokens\":{most}")
                }
            }
        }
        if self.stream && !self.asks_usage() {
            match &self.stream_options {
                StreamOptions::Absent => append += ",\"stream_options\":{\"include_usage\":true}",
                StreamOptions::Null(at) => replace(*at, "{\"include_usage\":true}".to_owned()),
                StreamOptions::Object { include_usage: Some((at, _)), .. } => replace(*at, "true".to_owned()),
                StreamOptions::Object { open, empty, include_usage: None } => {
                    let comma = if *empty { "" } else { "," };
                    replace(
                        Span { start: open + 1, end: open + 1 },
                        format!("\"include_usage\":true{comma}"),
                    );
                }
            }
        }
        if !append.is_empty() {
            replace(Span { start: self.end, end: self.end }, append);
        }
        edits.sort_by_key(|edit| edit.start);
        edits
    }
}

fn not_json(error: serde_json::Error) -> Invalid {
    Invalid::NotJson(error.to_string())
}

/// A string that borrows where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A value that is there, be it null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

fn stream_options<'a>(fields: &mut Fields<'a>, span: impl Fn(&RawValue) -> Span) -> StreamOptions {
    #[derive(Deserialize)]
    struct Options<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        include_usage: Option<&'a RawValue>,
    }
    let Some(raw) = fields.raw[Field::StreamOptions as usize] else { return StreamOptions::Absent };
    let Some(value) = fields.get(Field::StreamOptions) else { return StreamOptions::Null(span(raw)) };
    let wanted = "an object whose include_usage is a boolean";
    let options: Option<Options<'a>> = if value.get().starts_with('{') {
        fields.typed(Field::StreamOptions, wanted)
    } else {
        fields.wrong(Field::StreamOptions, wanted);
        None
    };
    // What is wrong is refused, or goes on as it came: claim that usage was asked for, so nothing is changed.
    let as_it_came = StreamOptions::Object { open: 0, empty: false, include_usage: Some((span(raw), true)) };
    let Some(options) = options else { return as_it_came };
    let include_usage = match options.include_usage.map(|raw| (span(raw), raw.get())) {
        None => None,
        Some((at, "true")) => Some((at, true)),
        Some((at, "false" | "null")) => Some((at, false)),
        Some(_) => {
            fields.wrong(Field::StreamOptions, wanted);
            return as_it_came;
        }
    };
    let empty = value.get()[1..].trim_ascii_start().starts_with('}');
    StreamOptions::Object { open: span(value).start, empty, include_usage }
}

/// What the body asks for that the token prices don't cover.
fn billed_apart(fields: &mut Fields<'_>) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Tool<'a> {
        #[serde(borrow, rename = "type")]
        kind: Option<Cow<'a, str>>,
    }
    for field in
        [Field::WebSearchOptions, Field::SearchParameters, Field::Plugins, Field::Models, Field::Audio]
    {
        if fields.get(field).is_some() {
            return Some(field.name());
        }
    }
    let tools: Option<Vec<Tool<'_>>> = fields.typed(Field::Tools, "an array of tools, each with one type");
    let ours = |tool: &Tool<'_>| matches!(tool.kind.as_deref(), Some("function" | "custom") | None);
    if tools.is_some_and(|tools| !tools.iter().all(ours)) {
        return Some("a hosted tool");
    }
    let modalities: Option<Vec<Text<'_>>> = fields.typed(Field::Modalities, "an array of strings");
    if modalities.is_some_and(|modalities| modalities.iter().any(|modality| modality.0 != "text")) {
        return Some("an answer that is not text");
    }
    let tier: Option<Text<'_>> = fields.typed(Field::ServiceTier, "a string");
    // `auto` is the project's own setting, `flex` is cheaper than the price.
    tier.filter(|tier| !matches!(tier.0.as_ref(), "auto" | "default" | "flex")).map(|_| "a service tier")
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Body;
        impl<'de> Visitor<'de> for Body {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields<'de>, M::Error> {
                let mut fields = Fields::default();
                let mut messages = false;
                while let Some(key) = map.next_key::<Key>()? {
                    let known = match key {
                        Key::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                        Key::Misspelt(sent, known) => {
                            fields.invalid.get_or_insert(Invalid::Misspelt { sent, known: known.name() });
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                        Key::Known(known) => known,
                    };
                    let twice = if known == Field::Messages {
                        fields.unbounded = map.next_value::<Content>()?.0.or(fields.unbounded);
                        std::mem::replace(&mut messages, true)
                    } else {
                        fields.raw[known as usize].replace(map.next_value()?).is_some()
                    };
                    if twice {
                        fields.invalid.get_or_insert(Invalid::Duplicate(known.name()));
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Body)
    }
}

/// A key of the body.
enum Key {
    Known(Field),
    /// Equal to a known one but for case.
    Misspelt(String, Field),
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, name: &str) -> Result<Key, E> {
                if let Some(field) = field(name) {
                    return Ok(Key::Known(field));
                }
                // Go's encoding/json takes a key in any case, with Unicode's two foldings into ASCII.
                let fold = |c: char| match c {
                    '\u{17f}' => 's',
                    '\u{212a}' => 'k',
                    _ => c.to_ascii_lowercase(),
                };
                let alike = |known: &str| {
                    name.len() >= known.len()
                        && name.len() <= 3 * known.len()
                        && name.chars().map(fold).eq(known.chars())
                };
                let known = FIELDS.iter().find(|(_, known)| alike(known));
                Ok(known.map_or(Key::Other, |(field, _)| Key::Misspelt(repeated(name), *field)))
            }
        }
        deserializer.deserialize_identifier(Name)
    }
}

/// What in `messages` is not bounded by its bytes.
struct Content(Option<&'static str>);

/// Reads any JSON value at three depths: the messages, a message, its content.
#[derive(Clone, Copy)]
enum Depth {
    Messages,
    Message,
    Content,
    Part,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Depth::Messages).map(Content)
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Depth {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
        let within = match self {
            Self::Messages => Self::Message,
            Self::Content => Self::Part,
            // Neither a message nor a part is an array: whatever reads it so may find anything in it.
            Self::Message | Self::Part => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Some("a message in an array"));
            }
        };
        let mut unbounded = None;
        while let Some(found) = seq.next_element_seed(within)? {
            unbounded = unbounded.or(found);
        }
        Ok(unbounded)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut unbounded = None;
        let mut text = false;
        while let Some(key) = map.next_key::<MessageKey>()? {
            match (self, key) {
                (Self::Message, MessageKey::Content) => {
                    unbounded = unbounded.or(map.next_value_seed(Self::Content)?);
                }
                // An earlier answer in audio, by its id.
                (Self::Message, MessageKey::Audio) => {
                    let audio: Option<IgnoredAny> = map.next_value()?;
                    unbounded = unbounded.or(audio.map(|_| "audio"));
                }
                (Self::Part, MessageKey::Type) => match map.next_value::<PartType>()?.0 {
                    None => text = true,
                    found => unbounded = unbounded.or(found),
                },
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(match self {
            Self::Part if !text => unbounded.or(Some("a part without a type")),
            Self::Content | Self::Messages => Some("content in an object"),
            Self::Part | Self::Message => unbounded,
        })
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// The keys of messages and parts that matter.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum MessageKey {
    Content,
    Audio,
    Type,
    #[serde(other)]
    Other,
}

/// `None`: text. Else what is not.
struct PartType(Option<&'static str>);

impl<'de> Deserialize<'de> for PartType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kind = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(match kind.as_str() {
            Some("text" | "refusal") => None,
            Some("image_url") => Some("an image"),
            Some("input_audio") => Some("audio"),
            Some("file") => Some("a file"),
            _ => Some("a part that is not text"),
        }))
    }
}
