//! What commands print for people: columns, and times.

use std::time::{Duration, UNIX_EPOCH};

/// The last second that can be written with four digits of a year, milliseconds since 1970.
pub(crate) const UTC_MAX_MS: u64 = 253_402_300_799_000;

/// Columns as wide as they need to be, a line for each row.
pub(crate) fn lines<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> Vec<String> {
    let rows: Vec<_> = rows.into_iter().collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A time as ISO 8601 in UTC, to the second.
pub(crate) fn utc(unix_ms: u64) -> String {
    // A file may say anything.
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(UTC_MAX_MS));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_too_late_to_print() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
