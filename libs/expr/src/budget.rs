//! What evaluations may take.

use crate::error::EvalError;

/// Steps and memory that evaluations may take. A step is about ten nanoseconds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Steps: one for each part of the expression each time that it is evaluated, and one for each 32 bytes or each
    /// element that an operator or a function goes through.
    pub steps: u64,
    /// Bytes that may be allocated for texts, octets, lists and maps, freed ones included.
    pub bytes: u64,
}

impl Default for Budget {
    /// 500,000 steps and 16 MiB: far more than sensible expressions take, and about 5 ms at worst.
    fn default() -> Self {
        Self {
            steps: 500_000,
            bytes: 16 << 20,
        }
    }
}

/// What is left of a budget. Several evaluations for one record share a meter, so that the budget is the record's.
#[derive(Debug)]
pub struct Meter {
    granted: Budget,
    steps: u64,
    bytes: u64,
}

const BYTES_PER_STEP: usize = 32;

impl Meter {
    /// A whole budget.
    #[must_use]
    pub const fn new(granted: Budget) -> Self {
        Self {
            granted,
            steps: granted.steps,
            bytes: granted.bytes,
        }
    }

    /// Pays for steps.
    pub(crate) fn steps(&mut self, steps: usize) -> Result<(), EvalError> {
        match self.steps.checked_sub(steps as u64) {
            Some(left) => {
                self.steps = left;
                Ok(())
            }
            None => Err(EvalError::OutOfBudget {
                what: "steps",
                limit: self.granted.steps,
            }),
        }
    }

    /// Pays for going through so many bytes.
    pub(crate) fn scan(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.steps(bytes / BYTES_PER_STEP)
    }

    /// Pays for making so many bytes.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.scan(bytes)?;
        match self.bytes.checked_sub(bytes as u64) {
            Some(left) => {
                self.bytes = left;
                Ok(())
            }
            None => Err(EvalError::OutOfBudget {
                what: "bytes",
                limit: self.granted.bytes,
            }),
        }
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new(Budget::default())
    }
}
