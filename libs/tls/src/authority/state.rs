//! Roots, as they are kept and as they sign.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKey, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};

use super::{AuthorityOptions, AuthorityView};
use crate::{
    CertificateChain, Error, Fingerprint, KeyPair, RoleIdentity, TrustBundle, Validity,
    bundle::certificates_to_pem, chain::parse, provider,
};

/// Where a root stands in the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum RootState {
    /// Trusted, does not sign yet.
    Next,
    /// Signs leaves.
    Issuing,
    /// Trusted until a moment, signs no more.
    Retired {
        /// When it leaves the bundle.
        until: Timestamp,
    },
}

/// A root as others may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootStatus {
    /// SHA-256 of the certificate.
    pub fingerprint: Fingerprint,
    /// Where it stands in the rotation.
    pub state: RootState,
    /// When it is valid.
    pub validity: Validity,
}

/// All roots; exactly one signs.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) roots: Vec<Root>,
}

/// One root. The key is there as long as it may sign.
#[derive(Clone)]
pub(super) struct Root {
    chain: CertificateChain,
    key: Option<Arc<KeyPair>>,
    state: RootState,
}

/// What a leaf is issued for.
pub(super) struct Subject<'a> {
    pub(super) key: &'a PublicKey,
    pub(super) identity: &'a RoleIdentity,
    pub(super) names: &'a [ServerName<'static>],
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    roots: Vec<StoredRoot>,
}

#[derive(Serialize, Deserialize)]
struct StoredRoot {
    certificate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(flatten)]
    state: RootState,
}

const FORMAT: u32 = 1;

impl State {
    pub(super) fn from_json(content: &[u8]) -> Result<Self, Error> {
        let stored: Stored = serde_json::from_slice(content).map_err(Error::authority)?;
        if stored.format != FORMAT {
            return Err(Error::authority(format!(
                "stored in format {}, this version reads format {FORMAT}",
                stored.format
            )));
        }
        let roots = stored
            .roots
            .into_iter()
            .map(Root::from_stored)
            .collect::<Result<Vec<_>, _>>()?;
        let state = Self { roots };
        state.issuing()?;
        Ok(state)
    }

    pub(super) fn to_json(&self) -> Result<String, Error> {
        let stored = Stored {
            format: FORMAT,
            roots: self.roots.iter().map(Root::to_stored).collect(),
        };
        serde_json::to_string_pretty(&stored).map_err(Error::authority)
    }

    /// The one root that signs.
    pub(super) fn issuing(&self) -> Result<&Root, Error> {
        let mut issuing = self.roots.iter().filter(|root| root.state == RootState::Issuing);
        match (issuing.next(), issuing.next()) {
            (Some(root), None) => Ok(root),
            _ => Err(Error::authority("exactly one root must be issuing")),
        }
    }

    pub(super) fn view(&self) -> Result<AuthorityView, Error> {
        let bundle = TrustBundle::new(self.roots.iter().map(|root| root.certificate().clone()))?;
        Ok(AuthorityView {
            bundle,
            issuer: self.issuing()?.fingerprint(),
        })
    }

    pub(super) fn switch(&mut self, until: Timestamp) -> Result<(), Error> {
        if !self.roots.iter().any(|root| root.state == RootState::Next) {
            return Err(Error::authority("no rotation has begun"));
        }
        for root in &mut self.roots {
            match root.state {
                RootState::Next => root.state = RootState::Issuing,
                RootState::Issuing => {
                    root.state = RootState::Retired { until };
                    root.key = None;
                }
                RootState::Retired { .. } => {}
            }
        }
        Ok(())
    }

    pub(super) fn expired_roots(&self, now: Timestamp) -> usize {
        self.roots.iter().filter(|root| root.is_over(now)).count()
    }
}

impl Root {
    pub(super) fn create(
        options: &AuthorityOptions,
        state: RootState,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let validity = validity(now, options.root_lifetime, options.clock_skew)?;
        let mut params = params(validity)?;
        let fingerprint = key.fingerprint().to_string();
        let short: String = fingerprint.chars().take(16).collect();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Foreshore CA {short}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(key.inner()).map_err(Error::authority)?;
        let chain = CertificateChain::from_der(vec![certificate.into()])?;
        Ok(Self {
            chain,
            key: Some(Arc::new(key)),
            state,
        })
    }

    /// A root that somebody else made.
    pub(super) fn given(certificate: &str, key: &str, state: RootState) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key)?;
        let chain = CertificateChain::from_pem(certificate.as_bytes())?;
        // What is above an intermediate is of no use: roles trust what signs their leaves.
        let chain = CertificateChain::from_der(chain.certificates().iter().take(1).cloned().collect())?;
        drop(crate::Credentials::new(chain.clone(), &key)?);
        let root = Self {
            chain,
            key: Some(Arc::new(key)),
            state,
        };
        let parsed = parse(root.certificate())?;
        if !parsed.is_ca() {
            return Err(Error::certificate(
                "it is none of an authority: basic constraints say so",
            ));
        }
        let usage = parsed.key_usage().map_err(Error::certificate)?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(Error::certificate(
                "its key usage does not let it sign certificates",
            ));
        }
        Ok(root)
    }

    pub(super) fn issue(
        &self,
        options: &AuthorityOptions,
        subject: &Subject<'_>,
        now: Timestamp,
    ) -> Result<CertificateChain, Error> {
        let own = self.validity();
        if !own.contains(now) {
            return Err(Error::RootNotValid {
                not_before: own.not_before,
                not_after: own.not_after,
                now,
            });
        }
        let key = self
            .key
            .as_deref()
            .ok_or_else(|| Error::authority("the issuing root has no key"))?;
        let mut validity = validity(now, options.leaf_lifetime, options.clock_skew)?;
        validity.not_after = validity.not_after.min(own.not_after);

        let mut params = params(validity)?;
        params
            .distinguished_name
            .push(DnType::CommonName, subject.identity.role().as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.names.is_empty() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params
            .subject_alt_names
            .push(SanType::URI(ia5(&subject.identity.to_uri())?));
        for name in subject.names {
            params.subject_alt_names.push(alternative_name(name)?);
        }

        let issuer = Issuer::from_ca_cert_der(self.certificate(), key.inner()).map_err(Error::authority)?;
        let certificate = params.signed_by(subject.key, &issuer).map_err(Error::authority)?;
        CertificateChain::from_der(vec![certificate.into()])
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        // A chain is never empty: `CertificateChain::from_der` refuses that.
        &self.chain.certificates()[0]
    }

    pub(super) fn state(&self) -> RootState {
        self.state
    }

    pub(super) fn validity(&self) -> Validity {
        self.chain.validity()
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.certificate())
    }

    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        matches!(self.state, RootState::Retired { until } if until <= now)
    }

    pub(super) fn status(&self) -> RootStatus {
        RootStatus {
            fingerprint: self.fingerprint(),
            state: self.state,
            validity: self.validity(),
        }
    }

    fn from_stored(stored: StoredRoot) -> Result<Self, Error> {
        let chain = CertificateChain::from_pem(stored.certificate.as_bytes())?;
        let key = stored.key.map(|text| KeyPair::from_pem(&text)).transpose()?;
        match (&key, stored.state) {
            (Some(key), _) => drop(crate::Credentials::new(chain.clone(), key)?),
            (None, RootState::Retired { .. }) => {}
            (None, _) => return Err(Error::authority("a root that may sign has no key")),
        }
        Ok(Self {
            chain,
            key: key.map(Arc::new),
            state: stored.state,
        })
    }

    fn to_stored(&self) -> StoredRoot {
        StoredRoot {
            certificate: certificates_to_pem(self.chain.certificates()),
            key: self.key.as_ref().map(|key| key.to_pem()),
            state: self.state,
        }
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.status(), f)
    }
}

/// From a little before now, for clocks that are behind. Bounded by the lifetime, since two thirds of the whole
/// must lie after the issue for renewal in time.
fn validity(now: Timestamp, lifetime: Duration, clock_skew: Duration) -> Result<Validity, Error> {
    let skew = clock_skew.min(lifetime / 10);
    Ok(Validity {
        not_before: now.checked_sub(skew).map_err(Error::authority)?,
        not_after: now.checked_add(lifetime).map_err(Error::authority)?,
    })
}

/// What roots and leaves have in common: validity, and a random serial number of 127 bits (RFC 5280, section
/// 4.1.2.2; one derived from the key would repeat at each renewal of the key).
fn params(validity: Validity) -> Result<CertificateParams, Error> {
    let mut serial = [0; 16];
    provider()
        .secure_random
        .fill(&mut serial)
        .map_err(|_| Error::authority("the operating system gave no random numbers"))?;
    serial[0] &= 0x7f;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(validity.not_before)?;
    params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(validity.not_after)?;
    Ok(params)
}

fn since_epoch(moment: Timestamp) -> Result<Duration, Error> {
    let seconds = u64::try_from(moment.as_second())
        .map_err(|_| Error::authority(format!("the clock says {moment}, before 1970")))?;
    // Certificates of the years beyond 9999 can't be written (RFC 5280, section 4.1.2.5).
    Ok(Duration::from_secs(seconds.min(253_402_300_799)))
}

fn alternative_name(name: &ServerName<'static>) -> Result<SanType, Error> {
    match name {
        ServerName::DnsName(name) => Ok(SanType::DnsName(ia5(name.as_ref())?)),
        ServerName::IpAddress(address) => Ok(SanType::IpAddress(IpAddr::from(*address))),
        other => Err(Error::authority(format!(
            "{other:?} can't stand in a certificate"
        ))),
    }
}

fn ia5(text: &str) -> Result<rcgen::string::Ia5String, Error> {
    text.try_into().map_err(Error::authority)
}
