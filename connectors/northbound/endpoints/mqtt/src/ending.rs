//! The end of clients.

use std::time::Duration;

use foreshore_runtime::Shutdown;

/// How long a client that is given up may take to say goodbye.
pub(crate) const GOODBYE: Duration = Duration::from_millis(200);

/// Ends a client when whoever waits for it gives up.
pub(crate) struct EndOnDrop(Option<(Shutdown, Duration)>);

impl EndOnDrop {
    /// The client ends within that time.
    pub(crate) fn new(shutdown: &Shutdown, within: Duration) -> Self {
        Self(Some((shutdown.clone(), within)))
    }

    /// The client goes on.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Some((shutdown, within)) = &self.0 {
            shutdown.begin(*within);
        }
    }
}
