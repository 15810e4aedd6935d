//! Recorded traffic: who asked when for how many tokens. No prompt is ever in a trace.
//!
//! The CSV's columns, by name and in any order; others are ignored:
//!
//! | column | holds | if absent |
//! |---|---|---|
//! | `time` | seconds (`12.5`), or an instant (`2023-11-16 18:15:46.68`, RFC 3339) | required |
//! | `feature`, `user` | sent as `x-plimsoll-feature`, `x-plimsoll-user` | drawn from [`Fill`] |
//! | `model` | sent as the body's `model` | [`Fill`] |
//! | `prompt_tokens` | the prompt is padded to this size | required |
//! | `output_tokens` | asked of the simulator | required |
//! | `stream` | `true`, `false`, `1`, `0` | drawn from [`Fill`] |
//!
//! The Azure LLM inference traces' own names (`TIMESTAMP`, `ContextTokens`, `GeneratedTokens`) are
//! understood as they are.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// One recorded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Since the trace's first call.
    pub at: Duration,
    /// Which feature called; empty: none is named.
    pub feature: Arc<str>,
    /// Which user; empty: none is named.
    pub user: Arc<str>,
    /// The model asked for.
    pub model: Arc<str>,
    /// Prompt tokens; 4 bytes each.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Whether the answer is to be streamed.
    pub stream: bool,
}

/// What stands in for columns that a trace lacks. Draws depend on the row's number alone, so that two
/// replays send the same.
#[derive(Clone, Debug)]
pub struct Fill {
    /// Features with their weights.
    pub features: Vec<(String, u32)>,
    /// How many distinct users; 0: none is named.
    pub users: u32,
    /// Models with their weights.
    pub models: Vec<(String, u32)>,
    /// How many of a hundred calls stream.
    pub stream_percent: u32,
}

impl Default for Fill {
    fn default() -> Self {
        Self { features: Vec::new(), users: 0, models: vec![("assistant".into(), 1)], stream_percent: 50 }
    }
}

/// Why a trace can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file itself.
    #[error("trace {0}: {1}")]
    File(String, std::io::Error),
    /// Not CSV.
    #[error("trace: {0}")]
    Csv(#[from] csv::Error),
    /// A required column is missing.
    #[error(
        "trace: no column \"{0}\"; needed are time, prompt_tokens, output_tokens (or Azure's TIMESTAMP, ContextTokens, GeneratedTokens)"
    )]
    Column(&'static str),
    /// A value can't be read.
    #[error("trace, line {line}, column {column}: \"{value}\" is not {wanted}")]
    Value {
        /// The line in the file.
        line: u64,
        /// The column.
        column: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        wanted: &'static str,
    },
}

/// Reads a trace's file, sorted by time.
///
/// # Errors
/// Names the file, or the line and column that can't be read.
pub fn read(path: &Path, fill: &Fill) -> Result<Vec<Call>, TraceError> {
    let file =
        std::fs::File::open(path).map_err(|error| TraceError::File(path.display().to_string(), error))?;
    parse(file, fill)
}

/// Reads a trace, sorted by time.
///
/// # Errors
/// Names the line and column that can't be read.
pub fn parse(source: impl Read, fill: &Fill) -> Result<Vec<Call>, TraceError> {
    let mut file = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(source);
    let columns = Columns::find(file.headers()?)?;
    let mut names = Names::default();
    let mut rows: Vec<(i128, Call)> = Vec::new();
    for row in file.records() {
        let row = row?;
        rows.push(columns.call(&row, rows.len(), fill, &mut names)?);
    }
    rows.sort_by_key(|(at, _)| *at);
    let first = rows.first().map_or(0, |(at, _)| *at);
    let since = |at: i128| Duration::from_nanos(u64::try_from(at - first).unwrap_or(u64::MAX));
    Ok(rows.into_iter().map(|(at, call)| Call { at: since(at), ..call }).collect())
}

/// Where each column stands.
struct Columns {
    time: usize,
    feature: Option<usize>,
    user: Option<usize>,
    model: Option<usize>,
    prompt: usize,
    output: usize,
    stream: Option<usize>,
}

impl Columns {
    fn find(header: &csv::StringRecord) -> Result<Self, TraceError> {
        let find = |names: &[&str]| {
            header.iter().position(|column| {
                let column = column.trim_start_matches('\u{feff}');
                names.iter().any(|name| column.eq_ignore_ascii_case(name))
            })
        };
        let need = |names: &[&'static str]| find(names).ok_or(TraceError::Column(names[0]));
        Ok(Self {
            time: need(&["time", "timestamp"])?,
            feature: find(&["feature"]),
            user: find(&["user"]),
            model: find(&["model"]),
            prompt: need(&["prompt_tokens", "ContextTokens"])?,
            output: need(&["output_tokens", "GeneratedTokens"])?,
            stream: find(&["stream"]),
        })
    }

    fn call(
        &self,
        row: &csv::StringRecord,
        index: usize,
        fill: &Fill,
        names: &mut Names,
    ) -> Result<(i128, Call), TraceError> {
        let bad = |column, at: usize, wanted| TraceError::Value {
            line: row.position().map_or(0, csv::Position::line),
            column,
            value: row[at].to_owned(),
            wanted,
        };
        let number = |column, at: usize| {
            row[at].parse::<u64>().map_err(|_| bad(column, at, "a whole number of tokens"))
        };
        let draw = |salt: u64| mix(u64::try_from(index).unwrap_or(0), salt);
        let text = |at: Option<usize>| at.map(|at| &row[at]);
        let time = nanos(&row[self.time])
            .ok_or_else(|| bad("time", self.time, "seconds or an instant like 2023-11-16 18:15:46.68"))?;
        let stream = match text(self.stream).map(str::to_ascii_lowercase).as_deref() {
            None => draw(3) % 100 < u64::from(fill.stream_percent),
            Some("true" | "1" | "yes") => true,
            Some("false" | "0" | "no" | "") => false,
            Some(_) => return Err(bad("stream", self.stream.unwrap_or(0), "true or false")),
        };
        let user = match text(self.user) {
            Some(user) => names.get(user),
            None if fill.users == 0 => names.get(""),
            None => names.get(&format!("user-{:03}", draw(2) % u64::from(fill.users))),
        };
        let call = Call {
            at: Duration::ZERO,
            feature: names.get(text(self.feature).unwrap_or_else(|| weighted(&fill.features, draw(1)))),
            user,
            model: names.get(text(self.model).unwrap_or_else(|| weighted(&fill.models, draw(4)))),
            prompt_tokens: number("prompt_tokens", self.prompt)?,
            output_tokens: number("output_tokens", self.output)?,
            stream,
        };
        Ok((time, call))
    }
}

/// Each distinct name once.
#[derive(Default)]
struct Names(std::collections::HashSet<Arc<str>>);

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let new: Arc<str> = name.into();
        self.0.insert(new.clone());
        new
    }
}

fn weighted(choices: &[(String, u32)], draw: u64) -> &str {
    let sum: u64 = choices.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if sum == 0 {
        return "";
    }
    let mut at = draw % sum;
    for (name, weight) in choices {
        let weight = u64::from(*weight);
        if at < weight {
            return name;
        }
        at -= weight;
    }
    ""
}

/// SplitMix64: a draw that depends on its inputs alone.
pub(crate) fn mix(index: u64, salt: u64) -> u64 {
    let mut z = index.wrapping_add(salt << 48).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Nanoseconds from an origin that is the same for the whole trace.
fn nanos(text: &str) -> Option<i128> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Some(at.as_nanosecond());
    }
    if let Ok(at) = text.parse::<jiff::civil::DateTime>() {
        return at.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|at| at.timestamp().as_nanosecond());
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: i128 = whole.parse().ok()?;
    let part: i128 = format!("{:0<9.9}", part).parse().ok()?;
    Some(whole * 1_000_000_000 + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_and_unknown_ones_ignored() {
        let text = "colour,stream,output_tokens,prompt_tokens,model,user,feature,time\n\
                    red,true,5,10,gpt,ann,search,1.5\n\
                    blue,0,6,11,gpt,bob,search,0.25\n";
        let calls = parse(text.as_bytes(), &Fill::default()).unwrap();
        assert_eq!(calls.len(), 2);
        assert_eq!((&*calls[0].user, calls[0].at, calls[0].stream), ("bob", Duration::ZERO, false));
        assert_eq!((&*calls[1].user, calls[1].at), ("ann", Duration::from_millis(1250)));
        assert_eq!((calls[1].prompt_tokens, calls[1].output_tokens), (10, 5));
    }

    #[test]
    fn the_azure_trace_is_read_as_published() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                    2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n";
        let fill = Fill { features: vec![("chat".into(), 1)], users: 3, ..Fill::default() };
        let calls = parse(text.as_bytes(), &fill).unwrap();
        assert_eq!(calls[1].at, Duration::from_nanos(4_314_579_000));
        assert_eq!((&*calls[1].feature, &*calls[1].model), ("chat", "assistant"));
        assert!(calls[1].user.starts_with("user-00"));
        assert_eq!(calls, parse(text.as_bytes(), &fill).unwrap(), "two readings draw the same");
    }

    #[test]
    fn a_bad_value_is_named_with_its_line() {
        let text = "time,prompt_tokens,output_tokens\n0,1,2\n1,many,2\n";
        let error = parse(text.as_bytes(), &Fill::default()).unwrap_err().to_string();
        assert_eq!(error, "trace, line 3, column prompt_tokens: \"many\" is not a whole number of tokens");
        let error = parse("time,output_tokens\n".as_bytes(), &Fill::default()).unwrap_err().to_string();
        assert!(error.starts_with("trace: no column \"prompt_tokens\""), "{error}");
    }
}
