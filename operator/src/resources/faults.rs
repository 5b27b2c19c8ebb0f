//! Everything that is wrong with an object, not only the first thing.

use crate::problem::Problem;

/// Gathers problems.
#[derive(Default)]
pub(crate) struct Faults(Vec<Problem>);

impl Faults {
    /// Takes what a check gave, or notes its problem.
    pub(crate) fn take<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.0.push(problem)).ok()
    }

    /// Notes a problem.
    pub(crate) fn add(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Fails when there was any problem.
    pub(crate) fn check(self) -> Result<(), Vec<Problem>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}
