//! Tables for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{CellAlignment, Table, presets};

/// A table without lines, with these headings.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(headings.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Aligns these columns to the right: amounts.
pub fn right(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// `12 ms`, `1.50 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`.
pub fn span(time: Duration) -> String {
    let millis = time.as_millis();
    let seconds = time.as_secs();
    match seconds {
        0 if millis < 10 => format!("{:.1} ms", time.as_secs_f64() * 1000.0),
        0 => format!("{millis} ms"),
        1..60 => format!("{:.2} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// How long ago a time (seconds since the epoch) is.
pub fn ago(seconds: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_secs(seconds);
    match SystemTime::now()
        .duration_since(then)
        .map(|time| time.as_secs())
    {
        Ok(seconds @ 0..60) => format!("{seconds} s ago"),
        Ok(seconds) => format!("{} ago", span(Duration::from_secs(seconds))),
        Err(_) => "in the future".to_owned(),
    }
}

/// The text, or `-` for none.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A kebab-case name as serde prints it.
pub fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn spans_print_with_the_digits_that_matter() {
        for (millis, text) in [
            (3, "3.0 ms"),
            (123, "123 ms"),
            (1500, "1.50 s"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
            (356_400_000, "4 d 3 h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }
}
