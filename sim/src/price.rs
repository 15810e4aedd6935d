//! What the simulated provider asks for its tokens; written apart from Plimsoll's own prices.
//!
//! Rates are integer nano-dollars for a million tokens. A call's classes are summed exactly and
//! rounded up once, to a nano-dollar: the rule that providers' price lists imply.

use std::collections::BTreeMap;
use std::path::Path;

/// Rates of one model, in nano-dollars for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Prompt tokens that did not come from the cache.
    pub input: u64,
    /// Prompt tokens that came from the cache.
    pub cached_input: u64,
    /// Output tokens, reasoning included.
    pub output: u64,
}

/// Rates by model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    models: BTreeMap<String, Rate>,
}

/// Why a price list can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// Not `MODEL=INPUT,CACHED,OUTPUT`.
    #[error(
        "\"{0}\" is not a price; write MODEL=INPUT,CACHED_INPUT,OUTPUT in USD per million tokens, say gpt-5.2=1.25,0.125,10"
    )]
    Form(String),
    /// Not a decimal number.
    #[error("\"{0}\" is not an amount of USD with at most nine decimal places; write it like 1.25")]
    Amount(String),
    /// The file can't be read as CSV.
    #[error("price list {0}: {1}")]
    File(String, csv::Error),
    /// A column is missing.
    #[error(
        "price list {0}: no column \"{1}\"; the columns are model, input, cached_input, output (USD per million tokens)"
    )]
    Column(String, &'static str),
}

impl Prices {
    /// Adds or replaces a model's rates.
    pub fn set(&mut self, model: impl Into<String>, rate: Rate) {
        self.models.insert(model.into(), rate);
    }

    /// Adds one `MODEL=INPUT,CACHED_INPUT,OUTPUT`, USD per million tokens.
    ///
    /// # Errors
    /// Says how a price is written.
    pub fn add(&mut self, text: &str) -> Result<(), PriceError> {
        let form = || PriceError::Form(text.to_owned());
        let (model, rates) = text.split_once('=').ok_or_else(form)?;
        let rates: Vec<u64> = rates.split(',').map(nanos).collect::<Result<_, _>>()?;
        let &[input, cached_input, output] = rates.as_slice() else { return Err(form()) };
        self.set(model, Rate { input, cached_input, output });
        Ok(())
    }

    /// Adds the rows of a CSV file with the columns model, input, cached_input, output (USD per million
    /// tokens).
    ///
    /// # Errors
    /// Names the file and what is wrong in it.
    pub fn read(&mut self, path: &Path) -> Result<(), PriceError> {
        let name = path.display().to_string();
        let bad = |error| PriceError::File(name.clone(), error);
        let mut file = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(bad)?;
        let header = file.headers().map_err(bad)?.clone();
        let column =
            |wanted| header.iter().position(|c| c == wanted).ok_or(PriceError::Column(name.clone(), wanted));
        let (model, input, cached, output) =
            (column("model")?, column("input")?, column("cached_input")?, column("output")?);
        for row in file.records() {
            let row = row.map_err(bad)?;
            let rate = |at: usize| nanos(&row[at]);
            let rate = Rate { input: rate(input)?, cached_input: rate(cached)?, output: rate(output)? };
            self.set(&row[model], rate);
        }
        Ok(())
    }

    /// The models that have rates, by name.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    /// What `prompt` tokens, `cached` of them from the cache, and `output` tokens of `model` cost, in
    /// nano-dollars. A model without rates costs nothing.
    #[must_use]
    pub fn bill(&self, model: &str, prompt: u64, cached: u64, output: u64) -> i64 {
        let Some(rate) = self.models.get(model) else { return 0 };
        let cached = cached.min(prompt);
        let sum = u128::from(rate.input) * u128::from(prompt - cached)
            + u128::from(rate.cached_input) * u128::from(cached)
            + u128::from(rate.output) * u128::from(output);
        i64::try_from(sum.div_ceil(1_000_000)).unwrap_or(i64::MAX)
    }
}

/// A decimal amount of USD in nano-dollars.
fn nanos(text: &str) -> Result<u64, PriceError> {
    let bad = || PriceError::Amount(text.to_owned());
    let text = text.trim();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = whole.len() + part.len();
    if digits == 0 || part.len() > 9 || !whole.bytes().chain(part.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    format!("{whole}{part:0<9}").parse().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_costs_what_the_price_list_says_to_the_nano_dollar() {
        let mut prices = Prices::default();
        prices.add("gpt-5.2=1.25,0.125,10").unwrap();
        // 800 × 1250 + 200 × 125 + 300 × 10000, all in nano-dollars.
        assert_eq!(prices.bill("gpt-5.2", 1000, 200, 300), 1_000_000 + 25_000 + 3_000_000);
        assert_eq!(prices.bill("another", 1000, 200, 300), 0);
        // A third of a nano-dollar is rounded up, once for the call.
        prices.set("tiny", Rate { input: 1, cached_input: 1, output: 1 });
        assert_eq!(prices.bill("tiny", 1, 0, 1), 1);
    }

    #[test]
    fn what_is_no_price_is_refused() {
        for bad in ["gpt", "gpt=1,2", "gpt=1,2,x", "gpt=1,2,-3", "gpt=1,2,0.0000000001", "gpt=1,,2"] {
            assert!(Prices::default().add(bad).is_err(), "{bad}");
        }
    }
}
