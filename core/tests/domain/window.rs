//! Windows: calendars of odd zones, and what holds in every zone.

use plimsoll_core::ids::UnixMs;
use plimsoll_core::policy::Bounds;
use plimsoll_core::window::{Period, WindowError, WindowSpec};
use proptest::prelude::*;

fn ms(text: &str) -> UnixMs {
    UnixMs(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

fn bounds(spec: &str, now: &str) -> (String, String) {
    let spec: WindowSpec = spec.parse().unwrap();
    let Bounds { start, end } = spec.bounds(ms(now));
    (spec.show(start), spec.show(end))
}

fn pair(start: &str, end: &str) -> (String, String) {
    (start.to_owned(), end.to_owned())
}

#[test]
fn a_month_in_berlin_begins_at_berlins_midnight() {
    let december = pair("2026-12-01T00:00+01:00", "2027-01-01T00:00+01:00");
    assert_eq!(bounds("Month@Europe/Berlin", "2026-11-30T23:00:00Z"), december);
    assert_eq!(bounds("Month@Europe/Berlin", "2026-12-31T22:59:59.999Z"), december);
    assert_eq!(bounds("Quarter@Europe/Berlin", "2026-11-24T12:00:00Z").0, "2026-10-01T00:00+02:00");
    assert_eq!(
        bounds("Year@UTC", "2026-11-24T12:00:00Z"),
        pair("2026-01-01T00:00+00:00", "2027-01-01T00:00+00:00")
    );
}

#[test]
fn weeks_begin_on_monday() {
    let week = pair("2026-11-23T00:00+00:00", "2026-11-30T00:00+00:00");
    assert_eq!(bounds("Week@UTC", "2026-11-23T00:00:00Z"), week);
    assert_eq!(bounds("Week@UTC", "2026-11-29T23:59:59Z"), week);
}

#[test]
fn a_day_is_23_or_25_hours_where_clocks_change() {
    let hours = |now: &str| {
        let Bounds { start, end } = "Day@Europe/Berlin".parse::<WindowSpec>().unwrap().bounds(ms(now));
        end.since(start) / 3_600_000
    };
    assert_eq!(hours("2026-03-29T12:00:00Z"), 23);
    assert_eq!(hours("2026-10-25T12:00:00Z"), 25);
    assert_eq!(hours("2026-10-26T12:00:00Z"), 24);
}

#[test]
fn an_hour_is_an_hour_through_a_change_of_clocks() {
    let spec: WindowSpec = "Hour@Europe/Berlin".parse().unwrap();
    for now in
        ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-03-29T00:59:00Z", "2026-03-29T01:00:00Z"]
    {
        let Bounds { start, end } = spec.bounds(ms(now));
        assert_eq!(end.since(start), 3_600_000, "{now}");
    }
}

#[test]
fn an_hour_is_cut_where_a_zone_shifts_by_half_of_one() {
    // Lord Howe Island goes from 02:00 to 02:30 and from 02:00 to 01:30.
    let spring = pair("2026-10-04T02:30+11:00", "2026-10-04T03:00+11:00");
    assert_eq!(bounds("Hour@Australia/Lord_Howe", "2026-10-03T15:40:00Z"), spring);
    let before = pair("2026-04-05T01:00+11:00", "2026-04-05T01:30+10:30");
    assert_eq!(bounds("Hour@Australia/Lord_Howe", "2026-04-04T14:59:00Z"), before);
    let after = pair("2026-04-05T01:30+10:30", "2026-04-05T02:00+10:30");
    assert_eq!(bounds("Hour@Australia/Lord_Howe", "2026-04-04T15:10:00Z"), after);
}

#[test]
fn a_day_that_apia_skipped_is_no_window() {
    // Samoa had no 30 December 2011.
    let day = pair("2011-12-29T00:00-10:00", "2011-12-31T00:00+14:00");
    assert_eq!(bounds("Day@Pacific/Apia", "2011-12-30T09:59:59Z"), day);
    assert_eq!(bounds("Day@Pacific/Apia", "2011-12-30T10:00:00Z").0, "2011-12-31T00:00+14:00");
}

#[test]
fn a_clock_set_back_over_midnight_stays_in_the_day_that_began() {
    // St. John's set 00:01 back to 23:01 of the day before.
    let first = bounds("Day@America/St_Johns", "2010-11-07T02:30:30Z");
    let second = bounds("Day@America/St_Johns", "2010-11-07T02:45:00Z");
    assert_eq!(first.0, "2010-11-07T00:00-02:30");
    assert_eq!(first, second);
}

#[test]
fn total_is_all_time_whatever_the_zone() {
    let spec: WindowSpec = "Total@Europe/Berlin".parse().unwrap();
    assert_eq!(spec.to_string(), "Total@UTC");
    assert_eq!(spec.bounds(ms("2026-11-24T12:00:00Z")), Bounds { start: UnixMs(0), end: UnixMs::NEVER });
    assert_eq!(spec.ahead(ms("2026-11-24T12:00:00Z"), i64::MAX).bounds.len(), 1);
    assert_eq!(spec.show(UnixMs::NEVER), "");
}

#[test]
fn a_zone_has_one_spelling() {
    for text in ["Month@europe/berlin", "Month@EUROPE/BERLIN", "Month@Europe/Berlin"] {
        assert_eq!(text.parse::<WindowSpec>().unwrap().to_string(), "Month@Europe/Berlin");
    }
    assert_eq!("Day@utc".parse::<WindowSpec>().unwrap().to_string(), "Day@UTC");
}

#[test]
fn a_wrong_zone_is_an_error_that_names_the_one_meant() {
    let error = |zone: &str| WindowSpec::new(Period::Month, zone).unwrap_err().to_string();
    assert_eq!(error("Berlin"), "\"Berlin\" is not an IANA time zone; did you mean \"Europe/Berlin\"?");
    assert_eq!(
        error("Europe/Berln"),
        "\"Europe/Berln\" is not an IANA time zone; did you mean \"Europe/Berlin\"?"
    );
    assert_eq!(
        error("new york"),
        "\"new york\" is not an IANA time zone; did you mean \"America/New_York\"?"
    );
    assert_eq!(
        error("Europe/Kolkata"),
        "\"Europe/Kolkata\" is not an IANA time zone; did you mean \"Asia/Kolkata\"?"
    );
    let lost = "\"qqqqqqqq\" is not an IANA time zone; use a name like \"Europe/Berlin\" or \"UTC\"";
    assert_eq!(error("qqqqqqqq"), lost);
    assert!(error("Europe/Belrin").ends_with("did you mean \"Europe/Berlin\"?"));
    let nowhere = error("Europe/Nowhere");
    assert!(nowhere.ends_with("use a name like \"Europe/Berlin\" or \"UTC\""), "{nowhere}");
    assert!(matches!("Month".parse::<WindowSpec>(), Err(WindowError::Shape(_))));
    assert!(matches!("Fortnight@UTC".parse::<WindowSpec>(), Err(WindowError::Period(_))));
    assert!(matches!("Month@".parse::<WindowSpec>(), Err(WindowError::Zone { near: None, .. })));
    let long = error(&"x".repeat(1 << 20));
    assert!(long.len() < 200, "{}", long.len());
}

#[test]
fn ahead_reaches_past_the_ride_through_and_at_least_one_window() {
    let now = ms("2026-11-24T12:00:30Z");
    let ahead = |spec: &str, ride: i64| spec.parse::<WindowSpec>().unwrap().ahead(now, ride).bounds;
    assert_eq!(ahead("Month@UTC", 600_000).len(), 2);
    // The current minute and the ten that begin within ten minutes.
    assert_eq!(ahead("Minute@UTC", 600_000).len(), 11);
    assert_eq!(ahead("Minute@UTC", 0).len(), 2);
    assert_eq!(ahead("Minute@UTC", i64::MAX).len(), 1_441);
}

const ZONES: [&str; 14] = [
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Pacific/Kiritimati",
    "America/St_Johns",
    "America/Havana",
    "America/Sao_Paulo",
    "Africa/Casablanca",
    "Africa/Monrovia",
    "Antarctica/Troll",
    "Asia/Pyongyang",
];
const PERIODS: [Period; 7] =
    [Period::Minute, Period::Hour, Period::Day, Period::Week, Period::Month, Period::Quarter, Period::Year];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn windows_tile_time(zone in 0..ZONES.len(), period in 0..PERIODS.len(), now in 0_i64..2_500_000_000_000) {
        let spec = WindowSpec::new(PERIODS[period], ZONES[zone]).unwrap();
        let mut now = UnixMs(now);
        let mut last = spec.bounds(now);
        for _ in 0..4 {
            let Bounds { start, end } = last;
            prop_assert!(start <= now && now < end, "{spec}: {start:?}..{end:?} does not contain {now:?}");
            // Every instant of a window has the same window.
            let middle = UnixMs(start.0 + end.since(start) / 2);
            for inside in [start, middle, UnixMs(end.0 - 1)] {
                prop_assert_eq!(spec.bounds(inside), last, "{} at {:?}", spec, inside);
            }
            let next = spec.bounds(end);
            prop_assert_eq!(next.start, end, "{}: a gap or an overlap after {:?}", spec, end);
            (now, last) = (end, next);
        }
    }

    #[test]
    fn text_and_window_say_the_same(zone in 0..ZONES.len(), period in 0..PERIODS.len()) {
        let spec = WindowSpec::new(PERIODS[period], ZONES[zone]).unwrap();
        prop_assert_eq!(spec.to_string().parse::<WindowSpec>().unwrap(), spec);
    }

    #[test]
    fn no_instant_and_no_text_is_too_much(now in any::<i64>(), text in ".{0,40}") {
        for period in PERIODS {
            let spec = WindowSpec::new(period, "Australia/Lord_Howe").unwrap();
            let Bounds { start, end } = spec.bounds(UnixMs(now));
            prop_assert!(start < end);
            let _ = spec.show(UnixMs(now));
            let ahead = spec.ahead(UnixMs(now), i64::from(period as u8) * 60_000).bounds;
            prop_assert!((1..=1_441).contains(&ahead.len()));
        }
        let _ = text.parse::<WindowSpec>();
    }
}

#[test]
fn every_change_of_clocks_of_two_centuries_is_tiled() {
    for zone in ZONES {
        let tz = jiff::tz::TimeZoneDatabase::bundled().get(zone).unwrap();
        let transitions = tz.following("1900-01-01T00:00:00Z".parse().unwrap());
        for transition in transitions.take_while(|t| t.timestamp() < "2100-01-01T00:00:00Z".parse().unwrap())
        {
            let at = transition.timestamp().as_millisecond();
            for period in PERIODS {
                let spec = WindowSpec::new(period, zone).unwrap();
                for now in [at - 3_600_000, at - 1, at, at + 1, at + 3_599_999, at + 3_600_000] {
                    let Bounds { start, end } = spec.bounds(UnixMs(now));
                    assert!(start.0 <= now && now < end.0, "{spec} at {now}");
                    assert_eq!(spec.bounds(start), Bounds { start, end }, "{spec} at {now}");
                    assert_eq!(spec.bounds(end).start, end, "{spec} at {now}");
                    assert_eq!(spec.bounds(UnixMs(start.0 - 1)).end, start, "{spec} at {now}");
                }
            }
        }
    }
}
