//! What a person sees of a step: a line when it begins, a spinner with the time it takes so far on a
//! terminal, a line with the time it took when it is done.

use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A step under way. Dropped without [`done`](Step::done), it has failed, and the error says so.
pub(crate) struct Step {
    name: &'static str,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// A step whose programs print nothing while it runs.
    pub(crate) fn begin(name: &'static str, doing: impl Display) -> Self {
        if !stderr().is_terminal() {
            return Self::begin_talking(name, doing);
        }
        let spinner = ProgressBar::new_spinner().with_prefix(name).with_message(doing.to_string());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(120));
        Self { name, started: Instant::now(), spinner: Some(spinner) }
    }

    /// A step whose programs show their own progress on this terminal.
    pub(crate) fn begin_talking(name: &'static str, doing: impl Display) -> Self {
        eprintln!("{name}: {doing}");
        Self { name, started: Instant::now(), spinner: None }
    }

    /// What the step does now.
    pub(crate) fn now(&self, doing: impl Display) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(doing.to_string()),
            None => eprintln!("{}: {doing}", self.name),
        }
    }

    /// Something to be kept on the screen.
    pub(crate) fn say(&self, what: impl Display) {
        let say = || eprintln!("{}: {what}", self.name);
        match &self.spinner {
            Some(spinner) => spinner.suspend(say),
            None => say(),
        }
    }

    /// The step has succeeded.
    pub(crate) fn done(self, outcome: impl Display) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!("{}: {outcome} ({:.1} s)", self.name, self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// A step that had nothing to do.
pub(crate) fn skipped(name: &str, why: impl Display) {
    eprintln!("{name}: {why}");
}
