//! How edges come by their certificates: join tokens, renewal, and renewal by possession of the key.

use std::{sync::Arc, time::Duration};

use foreshore_control::transport::Peer;
use foreshore_edgelink::{
    Refusal, possession,
    proto::{self, provisioning_server::Provisioning},
};
use foreshore_tls::{
    CertificateAuthority, CertificateChain, CertificateDer, CertificateRequest, Fingerprint, Role,
    RoleIdentity,
};
use jiff::{SignedDuration, Timestamp};
use ring::{hmac, rand::SystemRandom};
use tonic::{Request, Response, Status};
use tracing::{info, warn};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    directory::Directory,
    metrics::LinkMetrics,
    store::{
        StoreError,
        edges::{Applicant, EdgeRow},
    },
    times::{nanoseconds, timestamp},
};

/// How long a nonce may be signed.
const NONCE_TIME: SignedDuration = SignedDuration::from_secs(60);

/// Longest join token that is looked at, in bytes.
const MAX_TOKEN_LEN: usize = 4096;

/// The service `Provisioning`.
pub(crate) struct Provisioner {
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) directory: Directory,
    /// Namespace that the certificates name.
    pub(crate) namespace: String,
    pub(crate) renewal_grace: Duration,
    pub(crate) nonces: Nonces,
    pub(crate) metrics: LinkMetrics,
}

/// Makes nonces and recognises them again without remembering them: a time, and a code over time and edge under a key
/// of this process. A nonce can be used more than once in its minute, which gains nothing: what it gives is a
/// certificate for the same key.
pub(crate) struct Nonces {
    key: hmac::Key,
}

impl Nonces {
    pub(crate) fn new() -> Result<Self, foreshore_tls::Error> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| {
            foreshore_tls::Error::Key {
                reason: "the operating system gave no random numbers".to_owned(),
            }
        })?;
        Ok(Self { key })
    }

    fn make(&self, edge: &str, now: Timestamp) -> Vec<u8> {
        let time = nanoseconds(now).to_be_bytes();
        let tag = hmac::sign(&self.key, &[&time, edge.as_bytes()].concat());
        [&time, tag.as_ref()].concat()
    }

    fn holds(&self, nonce: &[u8], edge: &str, now: Timestamp) -> bool {
        let Some((time, tag)) = nonce.split_first_chunk::<8>() else {
            return false;
        };
        let age = now.duration_since(timestamp(i64::from_be_bytes(*time)));
        let is_fresh = age >= SignedDuration::ZERO && age <= NONCE_TIME;
        is_fresh && hmac::verify(&self.key, &[&time[..], edge.as_bytes()].concat(), tag).is_ok()
    }
}

/// SHA-256 of a join token: what is stored of it.
pub(crate) fn token_hash(token: &str) -> Fingerprint {
    Fingerprint::of(token.as_bytes())
}

/// The edge that a peer's certificate names, with the fingerprint of its key. The certificate was verified against the
/// own authority's roots when the connection was made.
pub(crate) fn edge_of(peer: &Peer) -> Option<(&str, Fingerprint)> {
    let identity = peer
        .identity
        .as_ref()
        .filter(|identity| identity.role() == Role::Edge)?;
    let (_, leaf) = X509Certificate::from_der(peer.chain.first()?).ok()?;
    Some((identity.name(), Fingerprint::of(leaf.public_key().raw)))
}

/// A refusal as the answer of a call.
pub(crate) fn refuse(metrics: &LinkMetrics, refusal: Refusal, words: impl Into<String>) -> Status {
    metrics.refusal(refusal.as_str());
    refusal.status(words)
}

/// A fault of the store as the answer of a call.
pub(crate) fn unavailable(metrics: &LinkMetrics, error: &StoreError) -> Status {
    refuse(metrics, Refusal::Unavailable, error.to_string())
}

impl Provisioner {
    fn refuse(&self, edge: &str, refusal: Refusal, words: impl Into<String>) -> Status {
        let words = words.into();
        warn!(
            edge = shorten(edge),
            reason = refusal.as_str(),
            "edge refused: {words}"
        );
        refuse(&self.metrics, refusal, words)
    }

    fn issue(&self, edge: &str, request: &CertificateRequest) -> Result<CertificateChain, Status> {
        // Tells apart the keys that an edge had.
        let uid: String = request.key_fingerprint().to_string().chars().take(32).collect();
        RoleIdentity::new(Role::Edge, &self.namespace, edge, uid)
            .and_then(|identity| self.authority.issue(request, &identity, &[], Timestamp::now()))
            .map_err(|error| self.refuse(edge, Refusal::Unavailable, error.to_string()))
    }

    fn credentials(&self, chain: &CertificateChain) -> Response<proto::Credentials> {
        let der = |certificate: &CertificateDer<'static>| certificate.to_vec().into();
        Response::new(proto::Credentials {
            chain: chain.certificates().iter().map(der).collect(),
            bundle: self.authority.bundle().roots().iter().map(der).collect(),
        })
    }

    fn parse(&self, edge: &str, request: &[u8]) -> Result<CertificateRequest, Status> {
        CertificateRequest::from_der(request)
            .map_err(|error| self.refuse(edge, Refusal::ProofInvalid, error.to_string()))
    }

    /// The edge that asks for a renewal, as its certificate or its proof says.
    fn renewing(&self, request: &Request<proto::RenewRequest>) -> Result<EdgeRow, Status> {
        let message = request.get_ref();
        let now = Timestamp::now();
        let proven = match (&message.possession, Peer::of(request).and_then(edge_of)) {
            (Some(proof), _) => {
                if !self.nonces.holds(&proof.nonce, &proof.edge, now) {
                    let words = "the nonce is not one of the last minute";
                    return Err(self.refuse(&proof.edge, Refusal::ProofInvalid, words));
                }
                let key = possession::verify(proof, &message.request)
                    .map_err(|error| self.refuse(&proof.edge, Refusal::ProofInvalid, error.to_string()))?;
                (proof.edge.as_str(), key)
            }
            (None, Some(edge_and_key)) => edge_and_key,
            (None, None) => {
                let words = "neither a certificate of an edge nor a proof of possession was shown";
                return Err(self.refuse("", Refusal::NotAnEdge, words));
            }
        };
        let (edge, key) = proven;
        let row = self.known(edge, key)?;
        let ends_at = timestamp(row.certificate_ends_at);
        if message.possession.is_none() && now > ends_at {
            // The connection has outlived its certificate.
            let words = format!("the certificate ended at {ends_at}: possession of its key must be proven");
            return Err(self.refuse(edge, Refusal::ProofInvalid, words));
        }
        if now > ends_at.checked_add(self.renewal_grace).unwrap_or(Timestamp::MAX) {
            let words = format!(
                "the certificate ended at {ends_at}, too long ago to renew; a join token admits the edge"
            );
            return Err(self.refuse(edge, Refusal::GraceOver, words));
        }
        Ok(row)
    }

    /// The edge, if it may connect with this key.
    pub(crate) fn known(&self, edge: &str, key: Fingerprint) -> Result<EdgeRow, Status> {
        let Some(row) = self.directory.row(edge) else {
            return Err(self.refuse(
                edge,
                Refusal::EdgeUnknown,
                "no edge of that name was admitted here",
            ));
        };
        if row.key != key {
            let words = "the key is not the one that the edge was admitted with last";
            return Err(self.refuse(edge, Refusal::KeyMismatch, words));
        }
        if row.revoked_at.is_some() {
            let words = "the edge was revoked; a new join token admits it again";
            return Err(self.refuse(edge, Refusal::EdgeRevoked, words));
        }
        Ok(row)
    }
}

#[tonic::async_trait]
impl Provisioning for Provisioner {
    async fn enroll(
        &self,
        request: Request<proto::EnrollRequest>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let proto::EnrollRequest {
            join_token,
            edge,
            request,
        } = request.into_inner();
        if join_token.len() > MAX_TOKEN_LEN {
            return Err(self.refuse(&edge, Refusal::TokenUnknown, "the join token is not known here"));
        }
        let request = self.parse(&edge, &request)?;
        let chain = self.issue(&edge, &request)?;
        let applicant = Applicant {
            token: token_hash(&join_token),
            edge: edge.clone(),
            key: request.key_fingerprint(),
            certificate_ends_at: nanoseconds(chain.validity().not_after),
        };
        match self.directory.admit(applicant).await {
            Ok(Ok(row)) => info!(edge = row.name, key = %row.key, "edge admitted"),
            Ok(Err((refusal, words))) => return Err(self.refuse(&edge, refusal, words)),
            Err(error) => return Err(unavailable(&self.metrics, &error)),
        }
        Ok(self.credentials(&chain))
    }

    async fn challenge(
        &self,
        request: Request<proto::ChallengeRequest>,
    ) -> Result<Response<proto::ChallengeReply>, Status> {
        // Answered alike whether the edge exists or not.
        let nonce = self.nonces.make(&request.get_ref().edge, Timestamp::now());
        Ok(Response::new(proto::ChallengeReply { nonce: nonce.into() }))
    }

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let row = self.renewing(&request)?;
        let request = self.parse(&row.name, &request.get_ref().request)?;
        if request.key_fingerprint() != row.key {
            let words =
                "an edge renews for the key that it was admitted with; a new join token admits another key";
            return Err(self.refuse(&row.name, Refusal::KeyMismatch, words));
        }
        let chain = self.issue(&row.name, &request)?;
        let ends_at = chain.validity().not_after;
        match self.directory.renew(row.clone(), nanoseconds(ends_at)).await {
            Ok(true) => info!(edge = row.name, until = %ends_at, "certificate renewed"),
            Ok(false) => {
                return Err(self.refuse(&row.name, Refusal::EdgeRevoked, "the edge was revoked meanwhile"));
            }
            Err(error) => return Err(unavailable(&self.metrics, &error)),
        }
        Ok(self.credentials(&chain))
    }
}

/// Names that nobody verified yet are shown in logs only in part.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_holds_for_its_edge_and_its_minute() {
        let nonces = Nonces::new().unwrap();
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let nonce = nonces.make("plant", now);
        let later = |seconds| now + SignedDuration::from_secs(seconds);
        assert!(nonces.holds(&nonce, "plant", now) && nonces.holds(&nonce, "plant", later(60)));
        assert!(!nonces.holds(&nonce, "plant", later(61)) && !nonces.holds(&nonce, "plant", later(-1)));
        assert!(!nonces.holds(&nonce, "plan", now) && !nonces.holds(&nonce[..20], "plant", now));
        assert!(!nonces.holds(&[], "plant", now));
        assert!(!Nonces::new().unwrap().holds(&nonce, "plant", now));
    }
}
