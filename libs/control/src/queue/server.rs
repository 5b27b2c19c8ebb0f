//! Serves the queues of a broker over gRPC.

use std::{collections::HashMap, sync::Arc};

use foreshore_tls::RoleIdentity;
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::{Error, OpenPath, Paths, convert, proto};
use crate::transport::Peer;

/// What a role wants with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To open it, read it and settle its entries.
    Read,
    /// To see its totals and dead letters, and to put dead letters back.
    Inspect,
}

/// Tells which role may do what with which path.
pub trait Access: Send + Sync + 'static {
    /// Whether the role, as its certificate names it, is entitled.
    fn allows(&self, role: &RoleIdentity, path: &str, purpose: Purpose) -> bool;
}

impl<F: Fn(&RoleIdentity, &str, Purpose) -> bool + Send + Sync + 'static> Access for F {
    fn allows(&self, role: &RoleIdentity, path: &str, purpose: Purpose) -> bool {
        self(role, path, purpose)
    }
}

/// Makes the gRPC service of a broker's queues, to be served with [`crate::transport::serve_tls`], which asks for
/// certificates and verifies them.
#[must_use]
pub fn service(paths: Arc<dyn Paths>, access: Arc<dyn Access>) -> tonic::service::Routes {
    let queues = Queues {
        paths,
        access,
        open: Mutex::default(),
    };
    let server = proto::queues_server::QueuesServer::new(queues)
        .max_decoding_message_size(super::client::MAX_MESSAGE_LEN)
        .max_encoding_message_size(super::client::MAX_MESSAGE_LEN);
    tonic::service::Routes::new(server)
}

struct Queues {
    paths: Arc<dyn Paths>,
    access: Arc<dyn Access>,
    /// The latest opening of each path: at most one for each path that exists.
    open: Mutex<HashMap<String, Arc<dyn OpenPath>>>,
}

impl Queues {
    fn permit<M>(&self, request: &Request<M>, path: &str, purpose: Purpose) -> Result<(), Status> {
        let forbidden = || Error::Forbidden {
            path: path.to_owned(),
        };
        let role = Peer::of(request)
            .and_then(|peer| peer.identity.as_ref())
            .ok_or_else(forbidden)?;
        if self.access.allows(role, path, purpose) {
            Ok(())
        } else {
            Err(forbidden().into())
        }
    }

    /// The opening of that epoch, if it is still the latest.
    fn opened(&self, path: &str, epoch: u64) -> Result<Arc<dyn OpenPath>, Error> {
        match self.open.lock().get(path) {
            Some(open) if open.epoch() == epoch => Ok(Arc::clone(open)),
            Some(open) if open.epoch() > epoch => Err(Error::Fenced {
                path: path.to_owned(),
            }),
            _ => Err(Error::Closed {
                path: path.to_owned(),
            }),
        }
    }

    /// Forgets an opening that the broker no longer serves.
    fn forget(&self, path: &str, epoch: u64, error: Error) -> Error {
        if !matches!(error, Error::Unavailable { .. } | Error::Fenced { .. }) {
            let mut open = self.open.lock();
            if open.get(path).is_some_and(|open| open.epoch() == epoch) {
                open.remove(path);
            }
        }
        error
    }
}

#[tonic::async_trait]
impl proto::queues_server::Queues for Queues {
    async fn open(
        &self,
        request: Request<proto::OpenRequest>,
    ) -> Result<Response<proto::OpenResponse>, Status> {
        self.permit(&request, &request.get_ref().path, Purpose::Read)?;
        let path = request.into_inner().path;
        let opened: Arc<dyn OpenPath> = Arc::from(self.paths.open(&path).await?);
        let response = proto::OpenResponse {
            epoch: opened.epoch(),
            tail: opened.opening_tail(),
        };
        let mut open = self.open.lock();
        // Two openings at a time may come here in the other order.
        if open
            .get(&path)
            .is_none_or(|present| present.epoch() < opened.epoch())
        {
            open.insert(path, opened);
        }
        Ok(Response::new(response))
    }

    async fn read(
        &self,
        request: Request<proto::ReadRequest>,
    ) -> Result<Response<proto::ReadResponse>, Status> {
        self.permit(&request, &request.get_ref().path, Purpose::Read)?;
        let request = request.into_inner();
        let open = self.opened(&request.path, request.epoch)?;
        let batch = open.read(convert::range_from_proto(&request)).await;
        let batch = batch.map_err(|error| self.forget(&request.path, request.epoch, error))?;
        Ok(Response::new(convert::batch_to_proto(&batch)))
    }

    async fn settle(
        &self,
        request: Request<proto::SettleRequest>,
    ) -> Result<Response<proto::SettleResponse>, Status> {
        self.permit(&request, &request.get_ref().path, Purpose::Read)?;
        let request = request.into_inner();
        let open = self.opened(&request.path, request.epoch)?;
        let settlements = request
            .settlements
            .into_iter()
            .map(convert::settlement_from_proto);
        let settled = open.settle(settlements.collect::<Result<_, _>>()?).await;
        settled.map_err(|error| self.forget(&request.path, request.epoch, error))?;
        Ok(Response::new(proto::SettleResponse {}))
    }

    async fn totals(
        &self,
        request: Request<proto::TotalsRequest>,
    ) -> Result<Response<proto::TotalsResponse>, Status> {
        let totals = self.paths.totals().await?.into_iter();
        let visible = totals.filter(|totals| {
            self.permit(&request, &totals.ledger.path, Purpose::Inspect)
                .is_ok()
        });
        Ok(Response::new(proto::TotalsResponse {
            totals: visible.map(convert::totals_to_proto).collect(),
        }))
    }

    async fn dead_letters(
        &self,
        request: Request<proto::DeadLettersRequest>,
    ) -> Result<Response<proto::DeadLettersResponse>, Status> {
        self.permit(&request, &request.get_ref().path, Purpose::Inspect)?;
        let request = request.into_inner();
        let max = request.max_entries.min(MAX_DEAD_LETTERS);
        let letters = self.paths.dead_letters(&request.path, request.after, max).await?;
        let letters = letters.into_iter().map(convert::letter_to_proto).collect();
        Ok(Response::new(proto::DeadLettersResponse { letters }))
    }

    async fn replay(
        &self,
        request: Request<proto::ReplayRequest>,
    ) -> Result<Response<proto::ReplayResponse>, Status> {
        self.permit(&request, &request.get_ref().path, Purpose::Inspect)?;
        let request = request.into_inner();
        let replayed = self.paths.replay(&request.path, &request.ids).await?;
        Ok(Response::new(proto::ReplayResponse { replayed }))
    }
}

/// Most dead letters in an answer; the caller asks on from the last one.
const MAX_DEAD_LETTERS: u32 = 1000;
