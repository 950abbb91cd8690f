//! A result file as `manta bench` or `manta bench-restore` wrote it, in this version or an older one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use thiserror::Error;

use crate::{Mode, Percentiles};

/// Why nothing can be made of result files.
#[derive(Debug, Error)]
pub enum ResultsError {
    /// No such file, or it is not readable.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else than a result.
    #[error("{} is not a result of manta bench or manta bench-restore", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No iteration of it succeeded.
    #[error("{} has no samples", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// The image cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a file says of a run.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Recorded {
    /// The file's name, without directory and `.json`.
    #[serde(skip)]
    pub(super) name: String,
    pub(super) iterations_requested: u32,
    pub(super) samples: Vec<RecordedSample>,
    /// As they are: older versions wrote fewer.
    #[serde(default)]
    pub(super) conditions: Value,
    #[serde(default)]
    pub(super) mode: Mode,
    #[serde(default = "one")]
    pub(super) concurrency: u32,
    pub(super) score: Option<f64>,
    #[serde(default)]
    pub(super) live: u32,
    /// Only restores have it.
    fixture: Option<IgnoredAny>,
}

/// The times of one successful iteration, nanoseconds.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct RecordedSample {
    #[serde(alias = "restore_tti_ns")]
    pub(super) tti_ns: u64,
    #[serde(alias = "restore_only_ns")]
    pub(super) create_ns: u64,
    pub(super) exec_ns: u64,
    pub(super) destroy_ns: u64,
    /// Not in files of restores, nor in those of older versions: one at a time, both of them.
    started_ns: Option<u64>,
}

fn one() -> u32 {
    1
}

impl Recorded {
    /// # Errors
    /// [`ResultsError`], but `Write`.
    pub(super) fn read(path: &Path) -> Result<Self, ResultsError> {
        let here = || path.to_owned();
        let text = fs::read(path).map_err(|source| ResultsError::Read { path: here(), source })?;
        let parsed = serde_json::from_slice(&text);
        let recorded: Self = parsed.map_err(|source| ResultsError::Parse { path: here(), source })?;
        if recorded.samples.is_empty() {
            return Err(ResultsError::Empty { path: here() });
        }
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, ..recorded })
    }

    pub(super) fn of(&self, part: fn(&RecordedSample) -> u64) -> Vec<u64> {
        self.samples.iter().map(part).collect()
    }

    pub(super) fn tti(&self) -> Percentiles {
        Percentiles::of(self.of(|sample| sample.tti_ns))
    }

    /// When each sample's sandbox was asked for, nanoseconds after the first launch. Where the file does not
    /// say, each began when the one before was destroyed.
    pub(super) fn starts(&self) -> Vec<u64> {
        let mut free = 0_u64;
        let mut start = |sample: &RecordedSample| {
            let started = sample.started_ns.unwrap_or(free);
            free = started.saturating_add(sample.tti_ns).saturating_add(sample.destroy_ns);
            started
        };
        self.samples.iter().map(&mut start).collect()
    }

    pub(super) fn is_restore(&self) -> bool {
        self.fixture.is_some()
    }

    /// How many succeeded, and how they were launched.
    pub(super) fn description(&self) -> String {
        let Self { iterations_requested, mode, concurrency, live, .. } = self;
        let what = if self.is_restore() { "restores, " } else { "" };
        let mut text = format!("{} of {iterations_requested}, {what}{mode}", self.samples.len());
        if *concurrency > 1 {
            text.push_str(&format!(", {concurrency} at once"));
        }
        if *live > 0 {
            text.push_str(&format!(", beside {live}"));
        }
        text
    }

    /// A value of the conditions as text; empty if the file does not have it.
    pub(super) fn condition(&self, pointer: &str) -> String {
        match self.conditions.pointer(pointer) {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        }
    }
}
