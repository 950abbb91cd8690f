//! What a person sees while it runs: a bar on a terminal, and each failure at once, everywhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Failure;

const TEMPLATE: &str = "{msg:8} {wide_bar} {pos}/{len}, {eta} left";

/// Draws on standard error, and only if that is a terminal.
#[derive(Debug, Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self(bar)
    }

    /// What is done from here on, and in how many steps.
    pub(crate) fn phase(&self, phase: &'static str, steps: u32) {
        self.0.reset();
        self.0.set_length(steps.into());
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
