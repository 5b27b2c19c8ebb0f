//! Admitted edges, as sessions follow them.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{
    store::{
        Context, Priority, Store, StoreError,
        edges::{self, Applicant, EdgeRow, Refused},
    },
    times::nanoseconds,
};
use jiff::Timestamp;

/// All edges that were ever admitted. Cheap to clone; every change is committed before it is seen here.
#[derive(Clone)]
pub(crate) struct Directory {
    store: Store,
    edges: Arc<RwLock<HashMap<String, watch::Sender<EdgeRow>>>>,
}

impl Directory {
    pub(crate) async fn load(store: Store) -> Result<Self, StoreError> {
        let rows = store.read(edges::all).await?;
        let edges = rows
            .into_iter()
            .map(|row| (row.name.clone(), watch::Sender::new(row)))
            .collect();
        Ok(Self {
            store,
            edges: Arc::new(RwLock::new(edges)),
        })
    }

    /// Follows an edge.
    pub(crate) fn get(&self, name: &str) -> Option<watch::Receiver<EdgeRow>> {
        self.edges.read().get(name).map(watch::Sender::subscribe)
    }

    /// The edge as it is now.
    pub(crate) fn row(&self, name: &str) -> Option<EdgeRow> {
        self.edges.read().get(name).map(|edge| edge.borrow().clone())
    }

    pub(crate) async fn admit(&self, applicant: Applicant) -> Result<Result<EdgeRow, Refused>, StoreError> {
        let now = nanoseconds(Timestamp::now());
        let admitted = self
            .store
            .write(Priority::Control, 1, move |context| {
                edges::admit(context, &applicant, now)
            })
            .await?;
        if let Ok(row) = &admitted {
            self.put(row.clone());
        }
        Ok(admitted)
    }

    /// Notes that an edge got another certificate; `false` when it was revoked, or got another key, meanwhile.
    pub(crate) async fn renew(&self, row: EdgeRow, certificate_ends_at: i64) -> Result<bool, StoreError> {
        let edge = row.clone();
        let renew = move |context: &mut Context<'_>| edges::renew(context, &edge, certificate_ends_at);
        let renewed = self.store.write(Priority::Control, 1, renew).await?;
        if renewed {
            self.change(&row.name, |row| row.certificate_ends_at = certificate_ends_at);
        }
        Ok(renewed)
    }

    /// Revokes an edge and ends its link; `false` when there is none of that name.
    pub(crate) async fn revoke(&self, name: &str) -> Result<bool, StoreError> {
        let (edge, now) = (name.to_owned(), nanoseconds(Timestamp::now()));
        let revoke = move |context: &mut Context<'_>| edges::revoke(context, &edge, now);
        let revoked = self.store.write(Priority::Control, 1, revoke).await?;
        if revoked {
            self.change(name, |row| row.revoked_at = row.revoked_at.or(Some(now)));
        }
        Ok(revoked)
    }

    /// Notes that an edge was connected.
    pub(crate) async fn saw(&self, row: &EdgeRow) -> Result<(), StoreError> {
        let (edge, now) = (row.id, nanoseconds(Timestamp::now()));
        self.store
            .write(Priority::Control, 1, move |context| {
                edges::saw(context, edge, now)
            })
            .await?;
        self.change(&row.name, |row| row.last_seen_at = Some(now));
        Ok(())
    }

    fn put(&self, row: EdgeRow) {
        let mut edges = self.edges.write();
        match edges.get(&row.name) {
            Some(edge) => drop(edge.send_replace(row)),
            None => drop(edges.insert(row.name.clone(), watch::Sender::new(row))),
        }
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut EdgeRow)) {
        if let Some(edge) = self.edges.read().get(name) {
            edge.send_modify(change);
        }
    }
}
