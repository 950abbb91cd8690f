//! What a person sees of a build: a spinner or a bar on a terminal; elsewhere a line when a step begins and
//! ends, and one every half minute between.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a step shows a sign of life where there is no terminal.
pub(crate) const PLAIN_INTERVAL: Duration = Duration::from_secs(30);
const FRAME: Duration = Duration::from_millis(120);

/// Where progress is shown.
#[derive(Debug, Clone, Copy)]
pub struct Progress(Shown);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Terminal,
    Lines,
    Nothing,
}

impl Progress {
    /// On standard error, as suits what that is.
    pub fn stderr() -> Self {
        Self(if stderr().is_terminal() { Shown::Terminal } else { Shown::Lines })
    }

    /// Nowhere.
    pub fn hidden() -> Self {
        Self(Shown::Nothing)
    }

    /// Says how an artifact stands for which nothing needs to be made.
    pub(crate) fn say(&self, name: &str, what: impl Display) {
        if self.0 != Shown::Nothing {
            eprintln!("{name}: {what}");
        }
    }

    pub(crate) fn step(&self, name: &'static str, doing: impl Into<String>) -> Step {
        let target = match self.0 {
            Shown::Terminal => ProgressDrawTarget::stderr(),
            Shown::Lines | Shown::Nothing => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target).with_prefix(name).with_message(doing.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        if self.0 == Shown::Terminal {
            bar.enable_steady_tick(FRAME);
        }
        let step =
            Step { name, progress: *self, bar, began: Instant::now(), said: Cell::new(Instant::now()) };
        step.line(step.bar.message());
        step
    }
}

/// A step under way. Dropped without [`done`](Step::done), it has failed, and the error says so.
pub(crate) struct Step {
    name: &'static str,
    progress: Progress,
    bar: ProgressBar,
    began: Instant,
    said: Cell<Instant>,
}

impl Step {
    /// The step's next part. It has about `total` units of work, when that is known.
    pub(crate) fn part(&self, doing: impl Into<String>, total: Option<u64>) {
        let template = match total {
            Some(_) => "{spinner} {prefix}: {msg} {wide_bar} {percent}% {elapsed}",
            None => "{spinner} {prefix}: {wide_msg} {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_position(0);
        match total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.set_message(doing.into());
        self.line(self.bar.message());
    }

    /// What is going on inside the part.
    pub(crate) fn detail(&self, doing: impl Into<String>) {
        self.bar.set_message(doing.into());
        self.alive();
    }

    /// One more unit of work is done. An estimate that was too low stays short of its end.
    pub(crate) fn advance(&self) {
        if self.bar.length().is_none_or(|total| self.bar.position() + 1 < total) {
            self.bar.inc(1);
        }
        self.alive();
    }

    /// To be called now and then: shows a line when there has been none for long.
    pub(crate) fn alive(&self) {
        if self.said.get().elapsed() >= PLAIN_INTERVAL {
            let share =
                self.bar.length().filter(|total| *total > 0).map(|total| 100 * self.bar.position() / total);
            let share = share.map(|percent| format!(", {percent}%")).unwrap_or_default();
            self.line(format!("{} ({} s{share})", self.bar.message(), self.began.elapsed().as_secs()));
        }
    }

    /// The step has succeeded.
    pub(crate) fn done(self, outcome: impl Display) {
        self.bar.finish_and_clear();
        self.progress.say(self.name, format_args!("{outcome} ({:.1} s)", self.began.elapsed().as_secs_f64()));
    }

    fn line(&self, text: String) {
        self.said.set(Instant::now());
        if self.progress.0 == Shown::Lines {
            eprintln!("{}: {text}", self.name);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
