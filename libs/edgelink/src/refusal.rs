//! Why the cloud endpoint refuses an edge.

use tonic::{Code, Status, metadata::MetadataValue};

/// Name of the metadata that carries [`Refusal::as_str`] with an error.
const METADATA: &str = "foreshore-reason";

/// Why an edge is refused: a constant that both ends, conditions and metrics use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No such join token.
    TokenUnknown,
    /// The join token's time is over.
    TokenExpired,
    /// The join token admitted another key already.
    TokenUsed,
    /// The join token is for another edge.
    TokenForAnotherEdge,
    /// No edge of that name was admitted.
    EdgeUnknown,
    /// The edge was revoked.
    EdgeRevoked,
    /// The key is not the one that the edge enrolled with.
    KeyMismatch,
    /// The certificate expired too long ago to renew by itself.
    GraceOver,
    /// The proof of possession is missing or does not hold.
    ProofInvalid,
    /// The peer showed no certificate of an edge, or of another edge than it says it is.
    NotAnEdge,
    /// Both ends have no version of the protocol in common.
    ProtocolUnsupported,
    /// A newer process of the same edge is connected.
    Superseded,
    /// The edge broke the protocol.
    ProtocolError,
    /// The cloud endpoint ends, or can't answer now.
    Unavailable,
}

impl Refusal {
    const ALL: [Self; 14] = [
        Self::TokenUnknown,
        Self::TokenExpired,
        Self::TokenUsed,
        Self::TokenForAnotherEdge,
        Self::EdgeUnknown,
        Self::EdgeRevoked,
        Self::KeyMismatch,
        Self::GraceOver,
        Self::ProofInvalid,
        Self::NotAnEdge,
        Self::ProtocolUnsupported,
        Self::Superseded,
        Self::ProtocolError,
        Self::Unavailable,
    ];

    /// The constant as it travels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TokenUnknown => "JoinTokenUnknown",
            Self::TokenExpired => "JoinTokenExpired",
            Self::TokenUsed => "JoinTokenUsed",
            Self::TokenForAnotherEdge => "JoinTokenForAnotherEdge",
            Self::EdgeUnknown => "EdgeUnknown",
            Self::EdgeRevoked => "EdgeRevoked",
            Self::KeyMismatch => "KeyMismatch",
            Self::GraceOver => "RenewalGraceOver",
            Self::ProofInvalid => "ProofInvalid",
            Self::NotAnEdge => "NotAnEdge",
            Self::ProtocolUnsupported => "ProtocolUnsupported",
            Self::Superseded => "Superseded",
            Self::ProtocolError => "ProtocolError",
            Self::Unavailable => "Unavailable",
        }
    }

    /// Whether the same try can succeed later without anyone's doing.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        // A proof fails when its nonce has become too old, as when the cloud endpoint was restarted in between.
        matches!(
            self,
            Self::Superseded | Self::ProtocolError | Self::ProofInvalid | Self::Unavailable
        )
    }

    const fn code(self) -> Code {
        match self {
            Self::TokenUnknown | Self::NotAnEdge | Self::ProofInvalid => Code::Unauthenticated,
            Self::TokenExpired
            | Self::TokenUsed
            | Self::TokenForAnotherEdge
            | Self::EdgeRevoked
            | Self::KeyMismatch
            | Self::GraceOver => Code::PermissionDenied,
            Self::EdgeUnknown => Code::NotFound,
            Self::ProtocolUnsupported => Code::FailedPrecondition,
            Self::Superseded => Code::Aborted,
            Self::ProtocolError => Code::InvalidArgument,
            Self::Unavailable => Code::Unavailable,
        }
    }

    /// The refusal as a status with its reason.
    #[must_use]
    pub fn status(self, message: impl Into<String>) -> Status {
        let mut status = Status::new(self.code(), message);
        status
            .metadata_mut()
            .insert(METADATA, MetadataValue::from_static(self.as_str()));
        status
    }

    /// The reason of a status; `None` when it is not from a cloud endpoint of ours.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let reason = status.metadata().get(METADATA)?.to_str().ok()?;
        Self::ALL.into_iter().find(|refusal| refusal.as_str() == reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_its_status() {
        for refusal in Refusal::ALL {
            let status = refusal.status("why");
            assert_eq!((Refusal::of(&status), status.message()), (Some(refusal), "why"));
        }
        assert_eq!(Refusal::of(&Status::unavailable("gone")), None);
    }
}
