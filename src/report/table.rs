//! The table of budgets that people read. Pure.

use super::Row;
use plimsoll_core::account::Unit;
use plimsoll_core::ids::UnixMs;

/// The widest line, in characters.
const SCREEN: usize = 100;

/// `rows` as an aligned table; `now` tells when windows end.
#[must_use]
pub fn render<'a>(rows: impl IntoIterator<Item = &'a Row>, now: UnixMs) -> String {
    let head = ["BUDGET", "LIMIT", "USED", "OF", "%", "RESETS IN", "STAGE", "ENFORCED"].map(str::to_owned);
    let cells = rows.into_iter().map(|row| {
        let limit = match row.unit {
            Unit::Usd => row.limit.clone(),
            Unit::Tokens | Unit::Requests => format!("{} ({})", row.limit, row.unit.as_str()),
        };
        [
            row.budget.clone(),
            limit,
            row.used.clone(),
            row.of.clone(),
            format!("{} %", row.percent),
            row.resets_at.map_or_else(|| "never".to_owned(), |at| span(at.since(now))),
            row.stage.clone(),
            row.enforced.clone(),
        ]
    });
    let mut lines: Vec<[String; 8]> = std::iter::once(head).chain(cells).collect();
    let width = |lines: &[[String; 8]], column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    };
    // Names give way, numbers never do.
    for (column, least) in [(0, 20), (1, 10)] {
        let all: usize = (0..8).map(|column| width(&lines, column)).sum::<usize>() + 2 * 7;
        let most = width(&lines, column).saturating_sub(all.saturating_sub(SCREEN)).max(least);
        lines.iter_mut().for_each(|line| line[column] = cut(&line[column], most));
    }
    let widths: [usize; 8] = std::array::from_fn(|column| width(&lines, column));
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (column, cell) in line.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            let is_text = matches!(column, 0 | 1 | 6);
            let (left, right) = if is_text { ("", pad.as_str()) } else { (pad.as_str(), "") };
            row.push_str(&format!("{}{left}{cell}{right}", if column == 0 { "" } else { "  " }));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// The first of `text`, marked where it was cut.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// A length of time in its largest unit, rounded up: `6 d`.
fn span(ms: i64) -> String {
    let (second, minute, hour, day) = (1_000, 60_000, 3_600_000, 86_400_000);
    let in_units = |unit: i64| (ms + unit - 1) / unit;
    match ms {
        ..=0 => "now".to_owned(),
        _ if ms > 2 * day => format!("{} d", in_units(day)),
        _ if ms > 2 * hour => format!("{} h", in_units(hour)),
        _ if ms > 2 * minute => format!("{} min", in_units(minute)),
        _ => format!("{} s", in_units(second)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(budget: &str, unit: Unit, used: &str, of: &str, percent: &str) -> Row {
        Row {
            budget: budget.to_owned(),
            limit: "month".to_owned(),
            unit,
            used: used.to_owned(),
            of: of.to_owned(),
            percent: percent.to_owned(),
            resets_at: Some(UnixMs(6 * 86_400_000 - 5)),
            stage: String::new(),
            enforced: "3/3".to_owned(),
        }
    }

    #[test]
    fn numbers_stand_under_each_other_and_no_line_is_longer_than_the_screen() {
        let mut blocked = row("finance/invoices", Unit::Usd, "4512.38", "5000.00", "90.2");
        blocked.stage = "Notify".to_owned();
        let mut total = row("a/b", Unit::Tokens, "7", "120000", "0.0");
        total.resets_at = None;
        total.enforced = "observe".to_owned();
        let expected = "\
BUDGET            LIMIT              USED       OF       %  RESETS IN  STAGE   ENFORCED
finance/invoices  month           4512.38  5000.00  90.2 %        6 d  Notify       3/3
a/b               month (Tokens)        7   120000   0.0 %      never           observe
";
        assert_eq!(render(&[blocked, total], UnixMs(0)), expected);
        let mut long = row(&"n".repeat(120), Unit::Requests, "1000000000", "1000000000", "100.0");
        long.limit = "l".repeat(40);
        assert!(render(&[long], UnixMs(0)).lines().all(|line| line.chars().count() <= 100));
    }

    #[test]
    fn a_window_that_ends_says_how_soon() {
        let shown = [-1, 1, 119_000, 121_000, 7_201_000, 200_000_000].map(span);
        assert_eq!(shown, ["now", "1 s", "119 s", "3 min", "3 h", "3 d"]);
    }
}
