//! Between the messages of the protocol and our types.
//!
//! What comes in is bounded here: lengths of names and texts, sizes of documents.

use std::collections::BTreeMap;

use bytes::Bytes;
use foreshore_tls::{CertificateChain, CertificateDer, Fingerprint, TrustBundle};
use jiff::Timestamp;

use crate::{
    facts::RoleFacts,
    handover::{HandOver, LARGEST_WATERMARK, Stage},
    plan::ResourceKey,
    proto,
    report::{
        Aspect, AspectKind, Discovered, Health, LARGEST_DOCUMENT, LONGEST_NAME, LONGEST_REASON, LONGEST_TEXT,
        MOST_COUNTERS, Nack, Report, Schema,
    },
    resource::{Resource, check_key},
};

/// A resource that a role has in force, or was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceVersion {
    /// What it is called.
    pub key: ResourceKey,
    /// Its number in the plan.
    pub version: u64,
    /// SHA-256 of its body.
    pub hash: Fingerprint,
}

impl ResourceVersion {
    pub(crate) fn of(resource: &Resource) -> Self {
        Self {
            key: resource.key().clone(),
            version: resource.version(),
            hash: resource.hash(),
        }
    }
}

/// A message that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub(crate) struct Malformed {
    field: &'static str,
    problem: String,
}

fn malformed(field: &'static str, problem: impl Into<String>) -> Malformed {
    Malformed {
        field,
        problem: problem.into(),
    }
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or_else(|| malformed(field, "is missing"))
}

fn bounded(field: &'static str, size: usize, longest: usize) -> Result<(), Malformed> {
    if size > longest {
        return Err(malformed(
            field,
            format!("has {size} bytes, allowed are {longest}"),
        ));
    }
    Ok(())
}

fn fingerprint(field: &'static str, bytes: &[u8]) -> Result<Fingerprint, Malformed> {
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|_| malformed(field, "is not a SHA-256 digest"))?;
    Ok(Fingerprint::from_bytes(bytes))
}

fn digest(fingerprint: Fingerprint) -> Bytes {
    Bytes::copy_from_slice(fingerprint.as_bytes())
}

// === keys and resources ===

impl From<ResourceKey> for proto::ResourceKey {
    fn from(key: ResourceKey) -> Self {
        Self {
            kind: key.kind.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }
}

pub(crate) fn key(field: &'static str, key: Option<proto::ResourceKey>) -> Result<ResourceKey, Malformed> {
    let key = present(field, key)?;
    let key = ResourceKey::new(key.kind, key.namespace, key.name);
    check_key(&key).map_err(|error| malformed(field, error.to_string()))?;
    Ok(key)
}

impl From<ResourceVersion> for proto::ResourceVersion {
    fn from(resource: ResourceVersion) -> Self {
        Self {
            key: Some(resource.key.into()),
            version: resource.version,
            hash: digest(resource.hash),
        }
    }
}

pub(crate) fn resource_version(resource: proto::ResourceVersion) -> Result<ResourceVersion, Malformed> {
    Ok(ResourceVersion {
        key: key("resource.key", resource.key)?,
        version: resource.version,
        hash: fingerprint("resource.hash", &resource.hash)?,
    })
}

impl From<Resource> for proto::Resource {
    fn from(resource: Resource) -> Self {
        Self {
            key: Some(resource.key().clone().into()),
            version: resource.version(),
            hash: digest(resource.hash()),
            phase: resource.phase(),
            body: resource.body().clone(),
        }
    }
}

/// What became of a resource on its way.
pub(crate) enum Received {
    /// It is whole.
    Whole(Resource),
    /// It can be named, but not used.
    Bad(ResourceVersion, Nack),
}

/// A resource that can't be used is refused by name, not by ending the session: the other ones must get through.
pub(crate) fn resource(resource: Option<proto::Resource>) -> Result<Received, Malformed> {
    let wire = present("resource", resource)?;
    let announced = ResourceVersion {
        key: key("resource.key", wire.key)?,
        version: wire.version,
        hash: fingerprint("resource.hash", &wire.hash)?,
    };
    Ok(
        match Resource::new(announced.key.clone(), wire.version, wire.phase, wire.body) {
            Ok(resource) if resource.hash() == announced.hash => Received::Whole(resource),
            Ok(_) => {
                let damaged = crate::resource::Error::Damaged {
                    key: announced.key.clone(),
                };
                Received::Bad(announced, damaged.into())
            }
            Err(error) => Received::Bad(announced, error.into()),
        },
    )
}

// === acknowledgements ===

/// The role's answer to a resource or a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) resource: ResourceVersion,
    pub(crate) removed: bool,
    pub(crate) refused: Option<Nack>,
}

impl From<Answer> for proto::from_role::Message {
    fn from(answer: Answer) -> Self {
        let resource = Some(answer.resource.into());
        match answer.refused {
            None => Self::Ack(proto::Ack {
                resource,
                removed: answer.removed,
            }),
            Some(nack) => {
                let nack = nack.bounded();
                Self::Nack(proto::Nack {
                    resource,
                    removed: answer.removed,
                    reason: nack.reason.into_owned(),
                    message: nack.message,
                })
            }
        }
    }
}

pub(crate) fn ack(ack: proto::Ack) -> Result<Answer, Malformed> {
    let resource = resource_version(present("ack.resource", ack.resource)?)?;
    Ok(Answer {
        resource,
        removed: ack.removed,
        refused: None,
    })
}

pub(crate) fn nack(nack: proto::Nack) -> Result<Answer, Malformed> {
    let resource = resource_version(present("nack.resource", nack.resource)?)?;
    bounded("nack.reason", nack.reason.len(), LONGEST_REASON)?;
    bounded("nack.message", nack.message.len(), LONGEST_TEXT)?;
    let refused = Some(Nack::new(nack.reason, nack.message));
    Ok(Answer {
        resource,
        removed: nack.removed,
        refused,
    })
}

// === reports ===

impl From<Aspect> for proto::Aspect {
    fn from(aspect: Aspect) -> Self {
        Self {
            kind: aspect.kind.as_str().to_owned(),
            name: aspect.name,
        }
    }
}

pub(crate) fn aspect(aspect: Option<proto::Aspect>) -> Result<Aspect, Malformed> {
    let aspect = present("aspect", aspect)?;
    bounded("aspect.kind", aspect.kind.len(), LONGEST_NAME)?;
    bounded("aspect.name", aspect.name.len(), LONGEST_NAME)?;
    Ok(Aspect::new(AspectKind::from_name(aspect.kind), aspect.name))
}

impl From<Report> for proto::Report {
    fn from(report: Report) -> Self {
        let report = report.bounded();
        let health = match report.health {
            Health::Available => proto::Health::Available,
            Health::Degraded => proto::Health::Degraded,
            Health::Unavailable => proto::Health::Unavailable,
            Health::Unknown => proto::Health::Unknown,
        };
        Self {
            object: Some(report.object.into()),
            aspect: Some(report.aspect.into()),
            health: health.into(),
            reason: report.reason.into_owned(),
            message: report.message,
            evidence: report.evidence,
            observed_generation: report.observed_generation,
            counters: report.counters,
            since_ms: report.since.as_millisecond(),
            uid: report.uid,
        }
    }
}

pub(crate) fn report(report: proto::Report) -> Result<Report, Malformed> {
    // A health of a newer version is one that this version can't judge.
    let health = match report.health() {
        proto::Health::Available => Health::Available,
        proto::Health::Degraded => Health::Degraded,
        proto::Health::Unavailable => Health::Unavailable,
        proto::Health::Unknown | proto::Health::Unspecified => Health::Unknown,
    };
    bounded("report.uid", report.uid.len(), LONGEST_NAME)?;
    bounded("report.reason", report.reason.len(), LONGEST_REASON)?;
    bounded("report.message", report.message.len(), LONGEST_TEXT)?;
    bounded("report.evidence", report.evidence.len(), LONGEST_TEXT)?;
    bounded("report.counters", report.counters.len(), MOST_COUNTERS)?;
    for name in report.counters.keys() {
        bounded("report.counters", name.len(), LONGEST_NAME)?;
    }
    Ok(Report {
        object: key("report.object", report.object)?,
        uid: report.uid,
        observed_generation: report.observed_generation,
        aspect: aspect(report.aspect)?,
        health,
        reason: report.reason.into(),
        message: report.message,
        evidence: report.evidence,
        counters: BTreeMap::from_iter(report.counters),
        since: Timestamp::from_millisecond(report.since_ms)
            .map_err(|error| malformed("report.since_ms", error.to_string()))?,
    })
}

impl From<HandOver> for proto::HandOver {
    fn from(hand_over: HandOver) -> Self {
        let stage = match hand_over.stage {
            Stage::Serving => proto::HandOverStage::Serving,
            Stage::Ready => proto::HandOverStage::Ready,
            Stage::Refused => proto::HandOverStage::Refused,
            Stage::Given => proto::HandOverStage::Given,
        };
        Self {
            device: Some(hand_over.device.into()),
            stage: stage.into(),
            number: hand_over.number,
            epoch: hand_over.epoch,
            watermark: hand_over.watermark,
        }
    }
}

pub(crate) fn hand_over(told: proto::HandOver) -> Result<HandOver, Malformed> {
    let stage = match told.stage() {
        proto::HandOverStage::Serving => Stage::Serving,
        proto::HandOverStage::Ready => Stage::Ready,
        proto::HandOverStage::Refused => Stage::Refused,
        proto::HandOverStage::Given => Stage::Given,
        proto::HandOverStage::Unspecified => {
            return Err(malformed("hand_over.stage", format!("found {}", told.stage)));
        }
    };
    bounded("hand_over.watermark", told.watermark.len(), LARGEST_WATERMARK)?;
    Ok(HandOver {
        device: key("hand_over.device", told.device)?,
        stage,
        number: told.number,
        epoch: told.epoch,
        watermark: told.watermark,
    })
}

impl From<Schema> for proto::Schema {
    fn from(schema: Schema) -> Self {
        Self {
            object: Some(schema.object.into()),
            aspect: Some(schema.aspect.into()),
            document: schema.document,
        }
    }
}

pub(crate) fn schema(schema: proto::Schema) -> Result<Schema, Malformed> {
    bounded("schema.document", schema.document.len(), LARGEST_DOCUMENT)?;
    Ok(Schema {
        object: key("schema.object", schema.object)?,
        aspect: aspect(schema.aspect)?,
        document: schema.document,
    })
}

impl From<Discovered> for proto::Discovered {
    fn from(discovered: Discovered) -> Self {
        Self {
            scan: Some(discovered.scan.into()),
            id: discovered.id,
            document: discovered.document,
        }
    }
}

pub(crate) fn discovered(discovered: proto::Discovered) -> Result<Discovered, Malformed> {
    bounded("discovered.id", discovered.id.len(), LONGEST_NAME)?;
    bounded("discovered.document", discovered.document.len(), LARGEST_DOCUMENT)?;
    Ok(Discovered {
        scan: key("discovered.scan", discovered.scan)?,
        id: discovered.id,
        document: discovered.document,
    })
}

// === facts ===

impl From<RoleFacts> for proto::Facts {
    fn from(facts: RoleFacts) -> Self {
        let RoleFacts { addresses, authority } = facts;
        let pairs = addresses.into_iter().flat_map(|(name, several)| {
            several.into_iter().map(move |address| proto::Address {
                name: name.clone(),
                address,
            })
        });
        Self {
            addresses: pairs.collect(),
            authority,
        }
    }
}

pub(crate) fn facts(told: proto::Facts) -> Result<RoleFacts, Malformed> {
    let mut facts = RoleFacts {
        authority: told.authority,
        ..RoleFacts::default()
    };
    for proto::Address { name, address } in told.addresses {
        facts = facts.with(name, address);
    }
    if facts.is_bounded() {
        Ok(facts)
    } else {
        Err(malformed("facts", "are larger than allowed"))
    }
}

// === certificates ===

fn der(certificates: &[CertificateDer<'static>]) -> Vec<Bytes> {
    certificates
        .iter()
        .map(|certificate| Bytes::copy_from_slice(certificate))
        .collect()
}

fn certificates(der: Vec<Bytes>) -> impl Iterator<Item = CertificateDer<'static>> {
    der.into_iter()
        .map(|certificate| CertificateDer::from(certificate.to_vec()))
}

pub(crate) fn to_certificate(chain: &CertificateChain, bundle: &TrustBundle) -> proto::Certificate {
    proto::Certificate {
        chain: der(chain.certificates()),
        roots: der(bundle.roots()),
    }
}

pub(crate) fn from_certificate(
    certificate: Option<proto::Certificate>,
) -> Result<(CertificateChain, TrustBundle), Malformed> {
    let certificate = present("certificate", certificate)?;
    let chain = CertificateChain::from_der(certificates(certificate.chain).collect())
        .map_err(|error| malformed("certificate.chain", error.to_string()))?;
    let bundle = TrustBundle::new(certificates(certificate.roots))
        .map_err(|error| malformed("certificate.roots", error.to_string()))?;
    Ok((chain, bundle))
}

pub(crate) fn to_trust(bundle: &TrustBundle) -> proto::Trust {
    proto::Trust {
        roots: der(bundle.roots()),
    }
}

pub(crate) fn from_trust(trust: proto::Trust) -> Result<TrustBundle, Malformed> {
    TrustBundle::new(certificates(trust.roots)).map_err(|error| malformed("trust.roots", error.to_string()))
}

pub(crate) fn trust_ack(ack: &proto::TrustAck) -> Result<Fingerprint, Malformed> {
    fingerprint("trust_ack.bundle", &ack.bundle)
}

pub(crate) fn to_trust_ack(bundle: &TrustBundle) -> proto::TrustAck {
    proto::TrustAck {
        bundle: digest(bundle.fingerprint()),
    }
}
