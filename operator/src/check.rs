//! `foreshore check`: judges manifests without running anything.

use std::fmt;

use serde::Serialize;

use crate::{
    accepted::Accepted,
    facts::Facts,
    platform::Platform,
    problem::Problem,
    reconcile::Reconciler,
    source::{
        self,
        directory::{Directory, Options},
    },
};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Objects that were declared and judged.
    pub objects: usize,
    /// Everything that is wrong; empty when all is right.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether all is right.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Report {
    /// A line for each problem, and a summary.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { objects, problems } = self;
        for problem in problems {
            writeln!(formatter, "{problem}")?;
        }
        write!(formatter, "{objects} objects, {} problems", problems.len())
    }
}

/// Judges manifests as a start with nothing accepted before would. Nothing is kept: [`Options::state`] is not used.
/// Blocks: for a thread that may.
///
/// # Errors
/// When a path that was given can't be read.
pub fn check(options: Options, platform: Platform) -> Result<Report, source::Error> {
    let snapshot = Directory::open(Options {
        state: None,
        ..options
    })?
    .read()?;
    let outcome = Reconciler::new(platform, Accepted::default()).reconcile(&snapshot, &Facts::default());
    let problems = outcome.all_problems().cloned().collect();
    Ok(Report {
        objects: outcome.verdicts.len(),
        problems,
    })
}
