//! Certificates that their authorities have revoked (RFC 5280 section 5).

use std::{collections::HashSet, fmt, sync::Arc};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use crate::{Error, bundle::LARGEST_BUNDLE, chain::parse};

/// What is read, for errors.
const WHAT: &str = "certificate revocation list";

/// Lists of revoked certificates. Cheap to clone.
#[derive(Clone, Default)]
pub struct RevocationLists {
    /// The newest first: of several lists of one authority the verifier reads the first only.
    lists: Arc<[CertificateRevocationListDer<'static>]>,
    /// Serial numbers in any of them. Whose is not in here is not revoked; whose is may be another authority's.
    serials: Arc<HashSet<Box<[u8]>>>,
}

impl RevocationLists {
    /// Reads all lists of a PEM text (`X509 CRL`); other sections are skipped.
    ///
    /// # Errors
    /// [`Error::Pem`] when it holds none, [`Error::Revocation`] when one can't be parsed, [`Error::TooLarge`].
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        if text.len() > LARGEST_BUNDLE * 2 {
            return Err(Error::TooLarge {
                what: WHAT.to_owned(),
                found: text.len() as u64,
                allowed: LARGEST_BUNDLE as u64 * 2,
            });
        }
        let malformed = |reason: String| Error::Pem { what: WHAT, reason };
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(text)
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(error.to_string()))?;
        if lists.is_empty() {
            return Err(malformed("found no X509 CRL section".to_owned()));
        }
        let mut serials = HashSet::new();
        let mut dated = Vec::with_capacity(lists.len());
        for list in &lists {
            let parsed = parse_list(list)?;
            serials.extend(
                parsed
                    .iter_revoked_certificates()
                    .map(|entry| number(entry.raw_serial())),
            );
            dated.push((parsed.last_update().timestamp(), list.clone()));
        }
        dated.sort_by_key(|(date, _)| std::cmp::Reverse(*date));
        Ok(Self {
            lists: dated.into_iter().map(|(_, list)| list).collect(),
            serials: Arc::new(serials),
        })
    }

    /// Whether there is no list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// The lists, the newest first.
    pub(crate) fn lists(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.lists
    }

    /// Whether a list may speak of a certificate of this chain; if not, verifying it can be spared.
    pub(crate) fn may_revoke(&self, chain: &[CertificateDer<'_>]) -> bool {
        let listed = |certificate| {
            parse(certificate)
                .is_ok_and(|certificate| self.serials.contains(&number(certificate.raw_serial())))
        };
        !self.serials.is_empty() && chain.iter().any(listed)
    }

    /// Judges each list by the root that it says it is of: a list that this root did not sign, or may not sign, would make
    /// the verifier refuse every certificate of the root. Lists of other issuers are those of intermediates.
    pub(crate) fn check(&self, roots: &[CertificateDer<'static>]) -> Result<(), Error> {
        for list in self.lists() {
            let list = parse_list(list)?;
            for root in roots {
                let root = parse(root)?;
                if root.subject().as_raw() != list.issuer().as_raw() {
                    continue;
                }
                let usage = root.key_usage().ok().flatten();
                let may_sign = usage.is_none_or(|usage| usage.value.crl_sign());
                if !may_sign || list.verify_signature(root.public_key()).is_err() {
                    return Err(Error::revocation(format!(
                        "the list of {} is not signed by the authority of that name, or by one of several, or its key \
                         usage lacks cRLSign",
                        list.issuer()
                    )));
                }
            }
        }
        Ok(())
    }
}

impl PartialEq for RevocationLists {
    fn eq(&self, other: &Self) -> bool {
        self.lists == other.lists
    }
}

impl Eq for RevocationLists {}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationLists")
            .field("lists", &self.lists.len())
            .field("certificates", &self.serials.len())
            .finish()
    }
}

fn parse_list<'a>(
    list: &'a CertificateRevocationListDer<'_>,
) -> Result<CertificateRevocationList<'a>, Error> {
    match CertificateRevocationList::from_der(list) {
        Ok(([], list)) => Ok(list),
        Ok(_) => Err(Error::revocation("bytes after its end")),
        Err(error) => Err(Error::revocation(error)),
    }
}

/// A serial number without the zeros that it may begin with.
fn number(serial: &[u8]) -> Box<[u8]> {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial[zeros..].into()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };

    use super::*;
    use crate::{Identity, Refusal, TrustBundle};

    struct Authority {
        root: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn params(name: &str, serial: u64) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params
    }

    fn authority_params(name: &str, serial: u64, usages: &[KeyUsagePurpose]) -> CertificateParams {
        let mut params = params(name, serial);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        params
    }

    const USAGES: [KeyUsagePurpose; 2] = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

    impl Authority {
        fn new(name: &str) -> Self {
            Self::with_usages(name, &USAGES)
        }

        fn with_usages(name: &str, usages: &[KeyUsagePurpose]) -> Self {
            let key = KeyPair::generate().unwrap();
            let params = authority_params(name, 1, usages);
            let root = params.self_signed(&key).unwrap().der().clone();
            let issuer = Issuer::new(params, key);
            Self { root, issuer }
        }

        /// An authority below this one.
        fn below(&self, name: &str, serial: u64) -> Self {
            let key = KeyPair::generate().unwrap();
            let params = authority_params(name, serial, &USAGES);
            let root = params.signed_by(&key, &self.issuer).unwrap().der().clone();
            let issuer = Issuer::new(params, key);
            Self { root, issuer }
        }

        fn client(&self, serial: u64) -> Vec<CertificateDer<'static>> {
            self.sign(params("client", serial))
        }

        fn sign(&self, mut params: CertificateParams) -> Vec<CertificateDer<'static>> {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = params.signed_by(&KeyPair::generate().unwrap(), &self.issuer);
            vec![certificate.unwrap().der().clone()]
        }

        /// A list of some year.
        fn list(&self, year: i32, serials: &[u64]) -> String {
            let revoked = |serial: &u64| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: date_time_ymd(year, 1, 1),
                next_update: date_time_ymd(year, 2, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: serials.iter().map(revoked).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            list.signed_by(&self.issuer).unwrap().pem().unwrap()
        }
    }

    fn trusting(authorities: &[&Authority], lists: &[String]) -> Result<TrustBundle, Error> {
        let bundle = TrustBundle::new(authorities.iter().map(|authority| authority.root.clone()))?;
        bundle.revoking(RevocationLists::from_pem(lists.concat().as_bytes())?)
    }

    /// Whether a client is refused as revoked, at the door and when it is in.
    fn is_revoked(bundle: &TrustBundle, chain: &[CertificateDer<'static>]) -> bool {
        let inside = Identity::anonymous(bundle.clone()).unwrap().revokes(chain);
        let door = bundle.identify(chain).unwrap_err();
        assert_eq!(door == Refusal::Revoked, inside, "{door}");
        // Who is not refused as that is let in, and named no role of ours.
        assert!(inside || door.to_string().contains("names no role"), "{door}");
        inside
    }

    #[test]
    fn whoever_is_revoked_is_refused_and_nobody_else() {
        let (plant, office) = (Authority::new("plant"), Authority::new("office"));
        let bundle = trusting(&[&plant, &office], &[plant.list(2025, &[7, 200])]).unwrap();
        assert!(is_revoked(&bundle, &plant.client(7)));
        assert!(
            is_revoked(&bundle, &plant.client(200)),
            "a number that begins with a zero"
        );
        assert!(!is_revoked(&bundle, &plant.client(8)));
        assert!(
            !is_revoked(&bundle, &office.client(7)),
            "the same number of an authority without a list"
        );
        let both = [plant.list(2025, &[7]), office.list(2025, &[8])];
        let bundle = trusting(&[&plant, &office], &both).unwrap();
        assert!(is_revoked(&bundle, &office.client(8)));
        assert!(!is_revoked(&bundle, &plant.client(8)));
    }

    #[test]
    fn the_newest_list_of_an_authority_counts() {
        let plant = Authority::new("plant");
        let lists = [plant.list(2024, &[7, 8]), plant.list(2025, &[8, 9])];
        let reversed = [lists[1].clone(), lists[0].clone()];
        for lists in [lists, reversed] {
            let bundle = trusting(&[&plant], &lists).unwrap();
            let revoked = [7, 8, 9].map(|serial| is_revoked(&bundle, &plant.client(serial)));
            assert_eq!(revoked, [false, true, true]);
        }
    }

    #[test]
    fn an_authority_in_between_is_revoked_with_all_its_clients() {
        let root = Authority::new("root");
        let (site, other) = (root.below("site", 7), root.below("other", 8));
        let bundle = trusting(&[&root], &[root.list(2025, &[7])]).unwrap();
        let chain = |authority: &Authority| [authority.client(3), vec![authority.root.clone()]].concat();
        assert!(is_revoked(&bundle, &chain(&site)));
        assert!(!is_revoked(&bundle, &chain(&other)));
    }

    #[test]
    fn who_has_expired_while_connected_may_be_revoked_as_well() {
        let plant = Authority::new("plant");
        let mut params = params("client", 7);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        let expired = plant.sign(params);
        let revokes = |serials: &[u64]| {
            let bundle = trusting(&[&plant], &[plant.list(2025, serials)]).unwrap();
            Identity::anonymous(bundle).unwrap().revokes(&expired)
        };
        assert!(revokes(&[7]));
        assert!(!revokes(&[8]));
    }

    #[test]
    fn lists_that_would_lock_everybody_out_are_not_taken() {
        let plant = Authority::new("plant");
        let refused = |authority: &Authority, list: &str| {
            trusting(&[authority], &[list.to_owned()])
                .unwrap_err()
                .to_string()
        };
        let signed = "the list of CN=plant is not signed by the authority of that name";
        let namesake = Authority::new("plant");
        assert!(refused(&plant, &namesake.list(2025, &[7])).contains(signed));
        // The verifier would read the one list for clients of both.
        let both = trusting(&[&plant, &namesake], &[namesake.list(2025, &[7])]);
        assert!(both.unwrap_err().to_string().contains(signed));
        let unfit = Authority::with_usages("plant", &[KeyUsagePurpose::KeyCertSign]);
        let key = unfit.issuer.key().serialize_der();
        let signer = Issuer::new(
            authority_params("plant", 1, &USAGES),
            KeyPair::try_from(key).unwrap(),
        );
        let signer = Authority {
            root: unfit.root.clone(),
            issuer: signer,
        };
        assert!(refused(&unfit, &signer.list(2025, &[7])).contains("lacks cRLSign"));

        assert!(refused(&plant, "").contains("found no X509 CRL section"));
        let certificate = pem::encode(&pem::Pem::new("CERTIFICATE", plant.root.to_vec()));
        assert!(refused(&plant, &certificate).contains("found no X509 CRL section"));
        let certificate = certificate.replace("CERTIFICATE", "X509 CRL");
        assert!(refused(&plant, &certificate).starts_with("certificate revocation list: "));
        let list = plant.list(2025, &[7]);
        let half = list.get(..list.len() / 2).unwrap();
        assert!(refused(&plant, half).starts_with("certificate revocation list: "));
    }
}
