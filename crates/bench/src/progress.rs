//! What a person sees while it runs: a bar on a terminal, and each failure at once, everywhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Failure;

const TEMPLATE: &str = "{msg:8} {wide_bar} {pos}/{len}, {eta} left";

/// Draws on standard error, and only if that is a terminal.
#[derive(Debug, Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(iterations: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(iterations), ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self(bar)
    }

    pub(crate) fn phase(&self, phase: &'static str) {
        self.0.set_message(phase);
    }

    pub(crate) fn step(&self) {
        self.0.inc(1);
    }

    pub(crate) fn failed(&self, phase: &str, failures: &[Failure]) {
        for failure in failures {
            self.say(&format!("{phase} {} failed: {}", failure.iteration, failure.error));
        }
    }

    pub(crate) fn say(&self, line: &str) {
        self.0.suspend(|| eprintln!("{line}"));
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}
