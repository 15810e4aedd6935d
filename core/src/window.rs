//! Windows: calendar intervals in a time zone, as canonical text and as half-open bounds.
//!
//! The only file that knows a calendar. The operator computes bounds here and sends them; a gateway
//! only shows instants with it. The rule that makes windows tile time whatever a zone does: a window
//! begins at a boundary, the boundaries are the first instants of civil dates, and the window of an
//! instant is the last boundary not after it up to the next (so a day that a zone skips is no window).
//! Hours and minutes are elapsed time, cut only where a zone shifts by less than a whole one.

use crate::ids::UnixMs;
use crate::policy::{Bounds, WindowBounds};
use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Span, Timestamp, ToSpan};
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// How long a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// A civil day.
    Day,
    /// Seven civil days from Monday.
    Week,
    /// A civil month.
    Month,
    /// Three months from January, April, July or October.
    Quarter,
    /// A civil year.
    Year,
    /// All time.
    Total,
}

const PERIODS: [(Period, &str); 8] = [
    (Period::Minute, "Minute"),
    (Period::Hour, "Hour"),
    (Period::Day, "Day"),
    (Period::Week, "Week"),
    (Period::Month, "Month"),
    (Period::Quarter, "Quarter"),
    (Period::Year, "Year"),
    (Period::Total, "Total"),
];

impl Period {
    /// Its name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        PERIODS.iter().find(|(period, _)| *period == self).map_or("", |(_, name)| name)
    }
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Not one of the eight periods.
    #[error("\"{0}\" is not a period; use Minute, Hour, Day, Week, Month, Quarter, Year or Total")]
    Period(String),
    /// Not in the time zone database.
    #[error("\"{zone}\" is not an IANA time zone{}", hint(.near.as_deref()))]
    Zone {
        /// As given, shortened.
        zone: String,
        /// The nearest name.
        near: Option<String>,
    },
    /// Not `Period@Zone`.
    #[error("\"{0}\" is not a window; write it like Month@Europe/Berlin")]
    Shape(String),
}

fn hint(near: Option<&str>) -> String {
    match near {
        Some(near) => format!("; did you mean \"{near}\"?"),
        None => "; use a name like \"Europe/Berlin\" or \"UTC\"".to_owned(),
    }
}

/// The most windows ahead that are computed: a day of minutes.
pub const MOST_AHEAD: usize = 1_440;

/// How long after its end a window is still served, in milliseconds: a gateway whose clock is behind, or that
/// hears of everything later, still admits into it. Policy names it that long, and the ledger grants in it.
pub const LATE_MS: i64 = 2_000;

/// A period in a time zone. Equal specifications have equal canonical texts, `Month@Europe/Berlin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    period: Period,
    name: &'static str,
    zone: TimeZone,
}

impl WindowSpec {
    /// `period` in the IANA zone named `zone`, in any case: the canonical spelling is kept. The zone of
    /// `Total` changes nothing and becomes UTC.
    ///
    /// # Errors
    /// [`WindowError::Zone`] with the nearest name, where no zone has this one.
    pub fn new(period: Period, zone: &str) -> Result<Self, WindowError> {
        let (name, zone) = find_zone(zone)?;
        if period == Period::Total {
            return Ok(Self { period, name: "UTC", zone: TimeZone::UTC });
        }
        Ok(Self { period, name, zone })
    }

    /// Its period.
    #[must_use]
    pub fn period(&self) -> Period {
        self.period
    }

    /// The canonical name of its zone.
    #[must_use]
    pub fn time_zone(&self) -> &str {
        self.name
    }

    /// The window that contains `now`; `Total` is `[0, NEVER)`.
    #[must_use]
    pub fn bounds(&self, now: UnixMs) -> Bounds {
        let unit_ms = match self.period {
            Period::Minute => 60_000,
            Period::Hour => 3_600_000,
            Period::Day | Period::Week | Period::Month | Period::Quarter | Period::Year => {
                return self.civil_bounds(now);
            }
            Period::Total => return Bounds { start: UnixMs(0), end: UnixMs::NEVER },
        };
        self.elapsed_bounds(now, unit_ms)
    }

    /// The window of `now` and those that begin within `ride_through_ms`: at least one ahead (none for
    /// `Total`), at most [`MOST_AHEAD`].
    #[must_use]
    pub fn ahead(&self, now: UnixMs, ride_through_ms: i64) -> WindowBounds {
        let mut last = self.bounds(now);
        let mut bounds = vec![last];
        let horizon = now.plus(ride_through_ms);
        while bounds.len() == 1 || (last.end <= horizon && bounds.len() <= MOST_AHEAD) {
            let next = self.bounds(last.end);
            // After the last window, be it `Total` or the calendar's end, there is none.
            if next.start != last.end {
                break;
            }
            bounds.push(next);
            last = next;
        }
        WindowBounds { bounds }
    }

    /// `at` for people, in this zone: `2026-12-01T00:00+01:00`; empty for [`UnixMs::NEVER`].
    #[must_use]
    pub fn show(&self, at: UnixMs) -> String {
        if at == UnixMs::NEVER {
            return String::new();
        }
        let at = timestamp(at);
        let offset = self.zone.to_offset(at);
        let local = offset.to_datetime(at);
        let sign = if offset.seconds() < 0 { '-' } else { '+' };
        let minutes = offset.seconds().unsigned_abs() / 60;
        let seconds = if local.second() == 0 { String::new() } else { format!(":{:02}", local.second()) };
        format!(
            "{}T{:02}:{:02}{seconds}{sign}{:02}:{:02}",
            local.date(),
            local.hour(),
            local.minute(),
            minutes / 60,
            minutes % 60
        )
    }

    /// Minutes and hours: elapsed time counted from the zone's offset.
    fn elapsed_bounds(&self, now: UnixMs, unit_ms: i64) -> Bounds {
        let at = timestamp(now);
        let now_ms = at.as_millisecond();
        let offset_ms = |at: Timestamp| i64::from(self.zone.to_offset(at).seconds()) * 1000;
        let offset = offset_ms(at);
        let start = now_ms - (now_ms + offset).rem_euclid(unit_ms);
        // A shift by whole units leaves the grid where it is; any other shift begins a new grid.
        let cuts = |transition: &Timestamp| {
            let before = offset_ms(timestamp(UnixMs(transition.as_millisecond() - 1)));
            (before - offset_ms(*transition)).rem_euclid(unit_ms) != 0
        };
        let from = timestamp(UnixMs(now_ms + 1));
        let start = self
            .zone
            .preceding(from)
            .map(|transition| transition.timestamp())
            .take_while(|transition| transition.as_millisecond() > start)
            .find(&cuts)
            .map_or(start, Timestamp::as_millisecond);
        let end = now_ms - (now_ms + offset).rem_euclid(unit_ms) + unit_ms;
        let end = self
            .zone
            .following(at)
            .map(|transition| transition.timestamp())
            .take_while(|transition| transition.as_millisecond() < end)
            .find(&cuts)
            .map_or(end, Timestamp::as_millisecond);
        Bounds { start: UnixMs(start), end: UnixMs(end) }
    }

    /// Days and longer: from the first instant of a civil date to that of another.
    fn civil_bounds(&self, now: UnixMs) -> Bounds {
        let at = timestamp(now);
        let now = UnixMs(at.as_millisecond());
        let mut first = self.first_date(self.zone.to_datetime(at).date());
        // A zone that sets its clock back over midnight has instants of a date after the next one began.
        while self.begin(first) > now {
            first = first.saturating_sub(self.length());
        }
        loop {
            let next = first.saturating_add(self.length());
            let end = if next == first { UnixMs::NEVER } else { self.begin(next) };
            if end > now {
                return Bounds { start: self.begin(first), end };
            }
            first = next;
        }
    }

    fn length(&self) -> Span {
        match self.period {
            Period::Week => 7.days(),
            Period::Month => 1.month(),
            Period::Quarter => 3.months(),
            Period::Year => 1.year(),
            Period::Day | Period::Minute | Period::Hour | Period::Total => 1.day(),
        }
    }

    /// The first date of the window that `date` is in.
    fn first_date(&self, date: Date) -> Date {
        match self.period {
            Period::Week => date.saturating_sub(i64::from(date.weekday().to_monday_zero_offset()).days()),
            Period::Month => date.first_of_month(),
            Period::Quarter => {
                date.first_of_month().saturating_sub(i64::from((date.month() - 1) % 3).months())
            }
            Period::Year => date.first_of_year(),
            Period::Day | Period::Minute | Period::Hour | Period::Total => date,
        }
    }

    /// The first instant of `date`; where the zone skips its midnight, or all of it, the first one after.
    fn begin(&self, date: Date) -> UnixMs {
        let midnight = date.at(0, 0, 0, 0);
        self.zone.to_timestamp(midnight).map_or(UnixMs::NEVER, |at| UnixMs(at.as_millisecond()))
    }
}

/// The years that calendars are computed for; an instant outside counts as the nearest one inside.
pub(crate) const FIRST_MS: i64 = -62_135_596_800_000;
pub(crate) const LAST_MS: i64 = 250_000_000_000_000;

fn timestamp(at: UnixMs) -> Timestamp {
    Timestamp::from_millisecond(at.0.clamp(FIRST_MS, LAST_MS)).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl fmt::Display for WindowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.period.as_str(), self.name)
    }
}

impl FromStr for WindowSpec {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let (period, zone) = text.split_once('@').ok_or_else(|| WindowError::Shape(shorten(text)))?;
        Self::new(period.parse()?, zone)
    }
}

impl FromStr for Period {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let found = PERIODS.iter().find(|(_, name)| *name == text);
        found.map(|(period, _)| *period).ok_or_else(|| WindowError::Period(shorten(text)))
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The zones of this build, not of the machine: replicas of one image agree.
fn zones() -> &'static (TimeZoneDatabase, Vec<String>) {
    static ZONES: OnceLock<(TimeZoneDatabase, Vec<String>)> = OnceLock::new();
    ZONES.get_or_init(|| {
        let db = TimeZoneDatabase::bundled();
        let mut names: Vec<String> = db.available().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        (db, names)
    })
}

fn find_zone(text: &str) -> Result<(&'static str, TimeZone), WindowError> {
    let (db, names) = zones();
    let canonical = names.iter().find(|name| name.eq_ignore_ascii_case(text));
    let zone = canonical.and_then(|name| Some((name.as_str(), db.get(name).ok()?)));
    zone.ok_or_else(|| WindowError::Zone { zone: shorten(text), near: near(text, names) })
}

/// The name that `text` most likely stands for: the one with its last part, else one that a typing error
/// or two away; none where it would be a guess.
fn near(text: &str, names: &[String]) -> Option<String> {
    let text = shorten(text).trim().replace(' ', "_").to_lowercase();
    let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_lowercase();
    let city = last(&text);
    if city.is_empty() {
        return None;
    }
    // Links such as "posix/…" don't stand in the bundle; of equals the shorter name is the usual one.
    let same = names.iter().filter(|name| last(name) == city);
    if let Some(name) = same.min_by_key(|name| name.len()) {
        return Some(name.clone());
    }
    let slips = |name: &String| edits(&text, &name.to_lowercase()).min(edits(&city, &last(name)));
    let (slips, name) =
        names.iter().map(|name| (slips(name), name)).min_by_key(|(slips, name)| (*slips, name.len()))?;
    (slips <= if city.len() < 6 { 1 } else { 2 }).then(|| name.clone())
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above + 1).min(row[j] + 1).min(diagonal + usize::from(x != *y));
            diagonal = above;
        }
    }
    row[b.len()]
}
