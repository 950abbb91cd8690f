//! What the run book prints at its end, in Markdown.

use std::fmt;

use serde_json::Value;

use super::proc::Held;

/// Rows, in the order they were measured.
#[derive(Debug, Default)]
pub(super) struct Table {
    runs: Vec<[String; 9]>,
    lines: Vec<String>,
}

impl Table {
    /// A result of `manta bench`.
    pub(super) fn run(&mut self, name: &str, outcome: &Value) {
        let ms = |pointer: &str| match outcome.pointer(pointer).and_then(Value::as_u64) {
            Some(ns) => format!("{:.1}", ns as f64 / 1e6),
            None => "–".to_owned(),
        };
        let number = |pointer: &str| outcome.pointer(pointer).map_or("–".to_owned(), Value::to_string);
        let pool = ["/pool/hits/count", "/pool/prepared/count", "/pool/misses/count", "/pool/unknown"];
        self.runs.push([
            name.to_owned(),
            ms("/min_ns"),
            ms("/p50_ns"),
            ms("/p95_ns"),
            ms("/p99_ns"),
            ms("/max_ns"),
            format!("{} / {}", ms("/create/p50_ns"), ms("/exec/p50_ns")),
            format!("{} of {}", number("/iterations_success"), number("/iterations_requested")),
            pool.map(number).join(" / "),
        ]);
    }

    /// What the server held after so many sandboxes.
    pub(super) fn held(&mut self, all: &[(u32, Held)]) {
        self.lines
            .push("\n| after | server's RSS KiB | descriptors | threads |\n|---|---|---|---|".to_owned());
        let row = |(after, held): &(u32, Held)| {
            format!("| {after} | {} | {} | {} |", held.rss_kib, held.fds, held.threads)
        };
        self.lines.extend(all.iter().map(row));
    }

    /// What a server and its VMMs took while nobody asked.
    pub(super) fn rest(&mut self, processes: usize, seconds: f64, cpu_s: f64, percent: f64) {
        self.lines.push(format!(
            "\nAt rest, the server and {processes} processes below it took {cpu_s:.2} s of processor time in \
             {seconds:.1} s: {percent:.2} % of one processor."
        ));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.runs.is_empty() {
            writeln!(
                f,
                "| TTI, ms | min | p50 | p95 | p99 | max | create / exec p50 | success | \
                 hit / prepared / miss / unknown |\n|---|---|---|---|---|---|---|---|---|"
            )?;
        }
        self.runs.iter().try_for_each(|cells| writeln!(f, "| {} |", cells.join(" | ")))?;
        writeln!(f)?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_is_a_row_and_what_is_absent_is_a_dash() {
        let mut table = Table::default();
        let percentiles = json!({"p50_ns": 2_000_000});
        table.run(
            "burst",
            &json!({"min_ns": 1_500_000, "p50_ns": 11_040_000, "max_ns": null, "create": percentiles,
                "exec": percentiles, "iterations_success": 99, "iterations_requested": 100,
                "pool": {"hits": {"count": 98}, "prepared": {"count": 0}, "misses": {"count": 1}, "unknown": 0}}),
        );
        table.held(&[(50, Held { rss_kib: 9000, fds: 12, threads: 5 })]);
        table.rest(50, 30.0, 0.6, 2.0);
        let text = table.to_string();
        assert!(
            text.contains("\n| burst | 1.5 | 11.0 | – | – | – | 2.0 / 2.0 | 99 of 100 | 98 / 0 / 1 / 0 |\n")
        );
        assert!(text.contains("\n| 50 | 9000 | 12 | 5 |\n"), "{text}");
        assert!(
            text.contains("50 processes below it took 0.60 s of processor time in 30.0 s: 2.00 % of one")
        );
    }
}
