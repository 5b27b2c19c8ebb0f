//! A tree of tokens that ends a role within a deadline.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long draining may take where [`Shutdown::begin`] is not told.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// Tells tasks to end, and until when they may finish what they began.
///
/// Cheap to clone; clones are the same token. A [child](Self::child) ends with its parent, but can end alone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    token: CancellationToken,
    deadline: OnceLock<Instant>,
    parent: Option<Shutdown>,
}

impl Shutdown {
    /// The root of a tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that ends when this one does, or earlier by itself.
    #[must_use]
    pub fn child(&self) -> Self {
        let inner = Inner {
            token: self.inner.token.child_token(),
            deadline: OnceLock::new(),
            parent: Some(self.clone()),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Tells everyone who waits for this token, or for a child of it, to end within `drain` from now.
    ///
    /// Only the first call counts.
    pub fn begin(&self, drain: Duration) {
        // The deadline is set first: whoever sees the cancellation sees the deadline too.
        self.inner.deadline.get_or_init(|| Instant::now() + drain);
        self.inner.token.cancel();
    }

    /// Whether the end has begun.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.inner.token.is_cancelled()
    }

    /// Resolves when the end begins; at once if it has.
    pub async fn begun(&self) {
        self.inner.token.cancelled().await;
    }

    /// Until when what was begun may be finished; `None` before the end has begun. The earliest deadline of this
    /// token and those above it.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let own = self.inner.deadline.get().copied();
        let above = self.inner.parent.as_ref().and_then(Self::deadline);
        match (own, above) {
            (Some(own), Some(above)) => Some(own.min(above)),
            (own, above) => own.or(above),
        }
    }

    /// How long what was begun may still take; `None` before the end has begun.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let deadline = self.deadline()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Runs a future until the end begins: its output, or `None` when the end came first. The future is dropped then,
    /// so it must be safe to cancel.
    pub async fn or_begun<F: Future>(&self, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.begun() => None,
            output = future => Some(output),
        }
    }

    /// Runs a future until the drain deadline: its output, or `None` when the deadline came first. Before the end has
    /// begun there is no deadline.
    pub async fn or_deadline<F: Future>(&self, future: F) -> Option<F::Output> {
        let expired = async {
            self.begun().await;
            match self.deadline() {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                // A parent's token is cancelled only through `begin`, which sets a deadline first.
                None => tokio::time::sleep(DEFAULT_DRAIN).await,
            }
        };
        tokio::select! {
            biased;
            output = future => Some(output),
            () = expired => None,
        }
    }

    /// Begins the end when the process is told to terminate (SIGTERM or SIGINT), with the given time to drain.
    ///
    /// # Errors
    /// When the operating system refuses the signal handlers.
    pub fn begin_on_signals(&self, drain: Duration) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        let watch = crate::spawn("signals", async move {
            let signal = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = shutdown.begun() => return,
            };
            tracing::info!(signal, drain_seconds = drain.as_secs_f64(), "ending");
            shutdown.begin(drain);
        });
        watch.detach();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_ends_with_its_parent_and_inherits_the_deadline() {
        let parent = Shutdown::new();
        let child = parent.child();
        assert!(!child.is_begun() && child.deadline().is_none());
        parent.begin(Duration::from_secs(60));
        child.begun().await;
        assert_eq!(child.deadline(), parent.deadline());
        assert!(child.deadline().is_some());
    }

    #[tokio::test]
    async fn a_child_ends_alone_with_the_earlier_deadline() {
        let parent = Shutdown::new();
        let child = parent.child();
        child.begin(Duration::from_secs(1));
        assert!(child.is_begun() && !parent.is_begun());
        parent.begin(Duration::from_secs(60));
        assert!(child.deadline() < parent.deadline());
        assert_eq!(child.or_begun(std::future::pending::<()>()).await, None);
    }

    #[tokio::test]
    async fn draining_is_bounded_by_the_deadline() {
        let shutdown = Shutdown::new();
        shutdown.begin(Duration::from_millis(5));
        assert_eq!(shutdown.or_deadline(std::future::pending::<()>()).await, None);
        assert_eq!(shutdown.or_deadline(async { 7 }).await, Some(7));
    }
}
