//! Why a broker does not start, or ends.

use foreshore_store::StoreError;

pub use crate::{
    audit::AuditError,
    auth::{InvalidIssuer, InvalidWebhook, WrongHash},
    listener::ListenError,
    policy::InvalidPolicy,
};

/// Why a broker does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Messages can't be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A listener can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A policy can't be compiled.
    #[error(transparent)]
    Policy(#[from] InvalidPolicy),
    /// The audit log can't be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The system gives no thread, or no runtime for one.
    #[error("can't start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// As many traces run as may.
    #[error("{max} traces run at present, which is as many as may: wait until one ends")]
    TooManyTraces {
        /// How many may.
        max: usize,
    },
}
