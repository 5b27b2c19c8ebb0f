//! Tasks with names, whose panics are reported and not swallowed.

use std::{
    any::Any,
    borrow::Cow,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
};

use tokio::task::JoinHandle;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many tasks of this process panicked; each is a fault of ours.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Why a task gave no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// It panicked, which is a fault of ours.
    #[error("task {name} panicked: {message}")]
    Panicked {
        /// Name of the task.
        name: Cow<'static, str>,
        /// The panic's message.
        message: String,
    },
    /// It was aborted, or the runtime ended.
    #[error("task {name} was aborted")]
    Aborted {
        /// Name of the task.
        name: Cow<'static, str>,
    },
}

/// A task that runs; a future of its output. Aborted when dropped, unless [detached](Task::detach).
#[must_use = "a task is aborted when it is dropped"]
#[derive(Debug)]
pub struct Task<T> {
    name: Cow<'static, str>,
    handle: Option<JoinHandle<Result<T, TaskError>>>,
}

/// Runs a future as a task with a name.
///
/// A panic ends the task only: it is logged with the name, counted ([`panics`]) and given to whoever awaits the task.
pub fn spawn<F>(name: impl Into<Cow<'static, str>>, future: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let name = name.into();
    let guarded = Guarded {
        name: name.clone(),
        future: Box::pin(future),
    };
    Task {
        name,
        handle: Some(tokio::spawn(guarded)),
    }
}

impl<T> Task<T> {
    /// The name that the task was spawned with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends the task at its next await.
    pub fn abort(&self) {
        if let Some(handle) = &self.handle {
            handle.abort();
        }
    }

    /// Whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the task run on by itself; its panics are still reported.
    pub fn detach(mut self) {
        drop(self.handle.take());
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let aborted = TaskError::Aborted {
            name: self.name.clone(),
        };
        let Some(handle) = self.handle.as_mut() else {
            return Poll::Ready(Err(aborted));
        };
        // Panics are caught inside of the task, so that a join error can only be an abort.
        Pin::new(handle)
            .poll(context)
            .map(|joined| joined.unwrap_or(Err(aborted)))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.abort();
    }
}

/// A future that turns a panic into an error.
struct Guarded<F> {
    name: Cow<'static, str>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // Unwind safe: after a panic the future is never polled again, only dropped.
        match catch_unwind(AssertUnwindSafe(|| this.future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => {
                let message = message_of(payload.as_ref());
                PANICS.fetch_add(1, Ordering::Relaxed);
                tracing::error!(task = %this.name, message, "task panicked");
                Poll::Ready(Err(TaskError::Panicked {
                    name: this.name.clone(),
                    message,
                }))
            }
        }
    }
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_its_output() {
        assert_eq!(spawn("sum", async { 1 + 1 }).await, Ok(2));
    }

    #[tokio::test]
    async fn a_panic_is_told_with_the_name_and_ends_only_the_task() {
        let before = panics();
        let task = spawn("bad", async {
            tokio::task::yield_now().await;
            panic!("no {}", "luck");
        });
        let error: TaskError = task.await.map(|(): ()| ()).unwrap_err();
        assert_eq!(
            error,
            TaskError::Panicked {
                name: "bad".into(),
                message: "no luck".into()
            }
        );
        assert!(panics() > before);
    }

    #[tokio::test]
    async fn a_dropped_task_is_aborted_and_a_detached_one_is_not() {
        let (alive, gone) = tokio::sync::oneshot::channel::<()>();
        drop(spawn("dropped", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        }));
        assert!(gone.await.is_err());

        let (done, result) = tokio::sync::oneshot::channel();
        spawn("detached", async move {
            tokio::task::yield_now().await;
            done.send(7).unwrap();
        })
        .detach();
        assert_eq!(result.await, Ok(7));
    }
}
