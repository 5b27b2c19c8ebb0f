//! The two calls of the protocol.

use std::sync::Arc;

use foreshore_runtime::Shutdown;
use foreshore_tls::CertificateRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{Shared, stream};
use crate::{
    enroll::{AuthenticationError, LARGEST_CREDENTIAL},
    proto,
    session::wire,
    transport::Peer,
};

/// Messages that wait for the connection, each of at most one mebibyte.
const OUTBOUND: usize = 8;

pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    pub(super) shutdown: Shutdown,
}

#[tonic::async_trait]
impl proto::control_server::Control for Service {
    async fn enroll(
        &self,
        request: Request<proto::EnrollRequest>,
    ) -> Result<Response<proto::EnrollResponse>, Status> {
        self.leading()?;
        let _permit = self
            .shared
            .enrolments
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("too many enrolments at a time"))?;
        let address = Peer::of(&request).map(|peer| peer.address);
        let proto::EnrollRequest { credential, request } = request.into_inner();
        if credential.len() > LARGEST_CREDENTIAL {
            return Err(Status::invalid_argument(format!(
                "credential has {} bytes, allowed are {LARGEST_CREDENTIAL}",
                credential.len()
            )));
        }
        let request = CertificateRequest::from_der(&request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let role = self
            .shared
            .authenticator
            .authenticate(&credential, request.key_fingerprint())
            .await
            .map_err(|error| {
                warn!(?address, %error, "enrolment refused");
                match error {
                    AuthenticationError::Refused { .. } => Status::unauthenticated(error.to_string()),
                    AuthenticationError::Unavailable { .. } => Status::unavailable(error.to_string()),
                }
            })?;
        let authority = &self.shared.authority;
        let chain = authority.issue(&request, &role).map_err(|error| {
            warn!(%role, %error, "certificate not issued");
            Status::internal(error.to_string())
        })?;
        info!(%role, ?address, not_after = %chain.validity().not_after, "role enrolled");
        let certificate = wire::to_certificate(&chain, &authority.certificates().bundle());
        Ok(Response::new(proto::EnrollResponse {
            certificate: Some(certificate),
        }))
    }

    type SessionStream = ReceiverStream<Result<proto::ToRole, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::FromRole>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let epoch = self.leading()?;
        let peer = Peer::of(&request)
            .cloned()
            .ok_or_else(|| Status::internal("the server was set up without peers"))?;
        let role = peer.identity.clone().ok_or_else(|| {
            Status::unauthenticated("a session needs a certificate that names a role: enroll first")
        })?;
        let permit = Arc::clone(&self.shared.sessions)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many sessions at a time"))?;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let session = stream::Session::new(
            Arc::clone(&self.shared),
            self.shutdown.clone(),
            (role, peer),
            epoch,
            request.into_inner(),
            outbound,
        );
        let run = async move {
            session.run().await;
            drop(permit);
        };
        foreshore_runtime::spawn("control session", run).detach();
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl Service {
    fn leading(&self) -> Result<u64, Status> {
        let epoch = *self.shared.leadership.borrow();
        epoch.ok_or_else(|| Status::unavailable("standby: another instance leads"))
    }
}
