//! What a replay saw, counted: statuses, refusals by code, latencies.

use super::client::{Answer, End};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Percentiles of a latency, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// Nine of ten are shorter.
    pub p90: f64,
    /// Ninety-nine of a hundred are shorter.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Percentiles {
    /// Of latencies in microseconds, which it sorts; zeros of none.
    #[must_use]
    #[expect(clippy::float_arithmetic, reason = "milliseconds for people")]
    pub fn of(micros: &mut [u32]) -> Self {
        micros.sort_unstable();
        let at = |percent: usize| {
            let index = (micros.len() * percent).div_ceil(100).saturating_sub(1);
            micros.get(index).map_or(0.0, |us| f64::from(*us) / 1000.0)
        };
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

/// A replay's result.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Calls that were sent.
    pub calls: u64,
    /// Calls answered whole with 2xx.
    pub served: u64,
    /// Calls by status; 0: no answer.
    pub statuses: BTreeMap<u16, u64>,
    /// Answers other than 2xx, by `error.code`.
    pub refusals: BTreeMap<String, u64>,
    /// Calls that were not answered whole, by how they ended.
    pub broken: BTreeMap<End, u64>,
    /// Seconds from the first call to the last answer.
    pub seconds: f64,
    /// Served calls a second.
    pub served_per_second: f64,
    /// Served calls: from due to the last byte.
    pub latency_ms: Percentiles,
    /// Served streams: from due to the first byte of the body.
    pub stream_first_byte_ms: Percentiles,
    /// Other answers: from due to the last byte.
    pub refusal_ms: Percentiles,
    #[serde(skip)]
    latencies: [Vec<u32>; 3],
}

impl Report {
    pub(super) fn add(&mut self, answer: &Answer) {
        let said = &answer.said;
        let micros = |us: u64| u32::try_from(us).unwrap_or(u32::MAX);
        let [served, first, refused] = &mut self.latencies;
        self.calls += 1;
        *self.statuses.entry(said.status).or_default() += 1;
        if said.end != End::Completed {
            *self.broken.entry(said.end).or_default() += 1;
        } else if (200..300).contains(&said.status) {
            self.served += 1;
            served.push(micros(answer.latency_us));
            if let Some(us) = answer.first_byte_us.filter(|_| answer.stream) {
                first.push(micros(us));
            }
        } else {
            let code = said.code.clone().unwrap_or_else(|| format!("status {}", said.status));
            *self.refusals.entry(code).or_default() += 1;
            refused.push(micros(answer.latency_us));
        }
    }

    #[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "rates for people")]
    pub(super) fn finish(mut self, took: Duration) -> Self {
        let [mut served, mut first, mut refused] = std::mem::take(&mut self.latencies);
        self.latency_ms = Percentiles::of(&mut served);
        self.stream_first_byte_ms = Percentiles::of(&mut first);
        self.refusal_ms = Percentiles::of(&mut refused);
        self.seconds = took.as_secs_f64();
        self.served_per_second = self.served as f64 / self.seconds.max(0.001);
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, served, statuses, refusals, broken, seconds, served_per_second, .. } = self;
        writeln!(f, "calls      {calls:>10}   in {seconds:.1} s")?;
        writeln!(f, "served     {served:>10}   {served_per_second:.1} a second")?;
        for (status, count) in statuses {
            let status = if *status == 0 { "none".to_owned() } else { status.to_string() };
            writeln!(f, "  status {status:<4} {count:>7}")?;
        }
        for (code, count) in refusals {
            writeln!(f, "refused    {count:>10}   {code}")?;
        }
        for (end, count) in broken {
            writeln!(f, "broken     {count:>10}   {end:?}")?;
        }
        writeln!(f)?;
        writeln!(f, "MILLISECONDS            P50       P90       P99       MAX")?;
        let rows = [
            ("served", &self.latency_ms),
            ("first byte, streams", &self.stream_first_byte_ms),
            ("refused", &self.refusal_ms),
        ];
        for (name, Percentiles { p50, p90, p99, max }) in rows {
            writeln!(f, "{name:<19} {p50:>7.1}   {p90:>7.1}   {p99:>7.1}   {max:>7.1}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut micros: Vec<u32> = (1..=100).map(|ms| ms * 1000).rev().collect();
        assert_eq!(Percentiles::of(&mut micros), Percentiles { p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 });
        assert_eq!(Percentiles::of(&mut [7000]).p99, 7.0);
        assert_eq!(Percentiles::of(&mut []), Percentiles::default());
    }
}
