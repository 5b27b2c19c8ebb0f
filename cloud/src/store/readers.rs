//! Connections for queries, which run on threads that may block.

use std::{path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{StoreError, schema::open_reader};

/// Queries at a time; more wait.
const CONNECTIONS: usize = 4;

/// After this time a query is ended.
const QUERY_TIME: Duration = Duration::from_secs(30);

/// Runs queries. Cheap to clone.
#[derive(Clone)]
pub(super) struct Readers {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        let shared = Shared {
            path,
            idle: Mutex::default(),
            permits: Semaphore::new(CONNECTIONS),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Runs `query` in one read transaction.
    pub(super) async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let _permit = self
            .shared
            .permits
            .acquire()
            .await
            .map_err(|_| StoreError::Closed)?;
        let idle = self.shared.idle.lock().pop();
        let shared = Arc::clone(&self.shared);
        let (handle, interrupt) = tokio::sync::oneshot::channel();
        let mut running = spawn_blocking(move || {
            let connection = idle.map_or_else(|| open_reader(&shared.path), Ok)?;
            // Nobody waits for it when the query's time is over before it began.
            drop(handle.send(connection.get_interrupt_handle()));
            let result = transact(&connection, query);
            shared.idle.lock().push(connection);
            result
        });
        let joined = match timeout(QUERY_TIME, &mut running).await {
            Ok(joined) => joined,
            Err(_) => {
                if let Ok(interrupt) = interrupt.await {
                    interrupt.interrupt();
                }
                running.await
            }
        };
        joined.unwrap_or_else(|error| {
            Err(StoreError::Failed {
                cause: error.to_string(),
            })
        })
    }
}

/// One transaction, so that the query sees one state; nothing is ever written in it.
fn transact<T>(
    connection: &Connection,
    query: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let transaction = connection.unchecked_transaction()?;
    query(&transaction)
}
