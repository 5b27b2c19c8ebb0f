//! What a client's certificate says. It was verified before; here it is only read.

use std::collections::BTreeMap;

use foreshore_crds::v1alpha1::broker::CertificateUserName;
use foreshore_tls::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// Name of the fact that holds the whole subject, for user names only.
const SUBJECT: &str = "subject";

/// Facts of a certificate: `CN`, `O`, `OU`, `C`, `L`, `ST`, `dns`, `uri`, `email`, `serial`, `issuer`.
pub(crate) fn facts(certificates: &[CertificateDer<'_>]) -> BTreeMap<String, Vec<String>> {
    let mut facts = BTreeMap::new();
    if let Some((_, certificate)) = certificates
        .first()
        .and_then(|der| X509Certificate::from_der(der).ok())
    {
        read(&certificate, &mut facts);
    }
    facts
}

fn read(certificate: &X509Certificate<'_>, facts: &mut BTreeMap<String, Vec<String>>) {
    let mut add = |fact: &str, value: &str| facts.entry(fact.to_owned()).or_default().push(value.to_owned());
    let subject = certificate.subject();
    let attributes = [
        (
            "CN",
            subject
                .iter_common_name()
                .filter_map(|a| a.as_str().ok())
                .collect::<Vec<_>>(),
        ),
        (
            "O",
            subject
                .iter_organization()
                .filter_map(|a| a.as_str().ok())
                .collect(),
        ),
        (
            "OU",
            subject
                .iter_organizational_unit()
                .filter_map(|a| a.as_str().ok())
                .collect(),
        ),
        (
            "C",
            subject.iter_country().filter_map(|a| a.as_str().ok()).collect(),
        ),
        (
            "L",
            subject.iter_locality().filter_map(|a| a.as_str().ok()).collect(),
        ),
        (
            "ST",
            subject
                .iter_state_or_province()
                .filter_map(|a| a.as_str().ok())
                .collect(),
        ),
        (
            "email",
            subject.iter_email().filter_map(|a| a.as_str().ok()).collect(),
        ),
    ];
    for (fact, values) in attributes {
        values.into_iter().for_each(|value| add(fact, value));
    }
    add(SUBJECT, &subject.to_string());
    add("issuer", &certificate.issuer().to_string());
    add("serial", &certificate.raw_serial_as_string());
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            continue;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => add("dns", name),
                GeneralName::URI(uri) => add("uri", uri),
                GeneralName::RFC822Name(name) => add("email", name),
                _ => {}
            }
        }
    }
}

/// What becomes the user name; `None` when the certificate does not say it.
pub(super) fn username(facts: &BTreeMap<String, Vec<String>>, from: CertificateUserName) -> Option<String> {
    let fact = match from {
        CertificateUserName::CommonName => "CN",
        CertificateUserName::Subject => SUBJECT,
        CertificateUserName::DnsName => "dns",
        CertificateUserName::Uri => "uri",
    };
    facts
        .get(fact)?
        .first()
        .filter(|value| !value.is_empty())
        .cloned()
}
