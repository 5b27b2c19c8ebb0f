//! Who is who in the cluster: an authority, a certificate for each component, and how it reaches the API server.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::layout::{API_PORT, API_SERVICE, CONTROL_PLANE, Layout, address, node, write};

/// Group whose members may do everything.
const MASTERS: &str = "system:masters";
/// Components and people without an address: file name, user, group.
const USERS: &[(&str, &str, Option<&str>)] = &[
    ("admin", "admin", Some(MASTERS)),
    ("apiserver-kubelet", "apiserver-kubelet", Some(MASTERS)),
    ("coredns", "foreshore:coredns", None),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-proxy", "system:kube-proxy", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("local-volumes", "foreshore:local-volumes", None),
];

/// Makes keys, certificates and kubeconfigs of a cluster.
pub(crate) fn make(layout: &Layout, nodes: u8) -> Result<()> {
    let authority = Authority::new(layout)?;
    for &(file, user, group) in USERS {
        authority.certify(file, user, group, &[])?;
        kubeconfig(layout, file)?;
    }
    let names = [
        CONTROL_PLANE,
        "127.0.0.1",
        API_SERVICE,
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    authority.certify("kube-apiserver", "kube-apiserver", None, &names)?;
    for machine in 1..=nodes {
        let name = node(machine);
        let user = format!("system:node:{name}");
        authority.certify(&name, &user, Some("system:nodes"), &[&name, &address(machine)])?;
        kubeconfig(layout, &name)?;
    }
    let accounts = KeyPair::generate().context("key of ServiceAccount tokens")?;
    write(
        &layout.pki("service-accounts.key"),
        accounts.serialize_pem().as_bytes(),
    )?;
    write(
        &layout.pki("service-accounts.pub"),
        accounts.public_key_pem().as_bytes(),
    )
}

/// The cluster's certificate authority.
struct Authority<'a> {
    layout: &'a Layout,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    fn new(layout: &'a Layout) -> Result<Self> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "foreshore test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().context("key of the authority")?;
        let certificate = params.self_signed(&key).context("certificate of the authority")?;
        write(&layout.pki("ca.crt"), certificate.pem().as_bytes())?;
        write(&layout.pki("ca.key"), key.serialize_pem().as_bytes())?;
        Ok(Self {
            layout,
            issuer: Issuer::new(params, key),
        })
    }

    /// Makes key and certificate of a user, who may be a server with names and addresses too.
    fn certify(&self, file: &str, user: &str, group: Option<&str>, names: &[&str]) -> Result<()> {
        let what = || format!("certificate of {user}");
        let names: Vec<String> = names.iter().copied().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names).with_context(what)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate().with_context(what)?;
        let certificate = params.signed_by(&key, &self.issuer).with_context(what)?;
        write(
            &self.layout.pki(&format!("{file}.crt")),
            certificate.pem().as_bytes(),
        )?;
        write(
            &self.layout.pki(&format!("{file}.key")),
            key.serialize_pem().as_bytes(),
        )
    }
}

/// Writes how a user reaches the API server. The certificates stay where they are: nobody off this machine gets there.
fn kubeconfig(layout: &Layout, user: &str) -> Result<()> {
    let config = kubeconfig_of(layout, user);
    write(&layout.kubeconfig(user), &serde_json::to_vec_pretty(&config)?)
}

fn kubeconfig_of(layout: &Layout, user: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "foreshore", "cluster": {
            "server": format!("https://{CONTROL_PLANE}:{API_PORT}"),
            "certificate-authority": layout.pki("ca.crt"),
        } }],
        "users": [{ "name": user, "user": {
            "client-certificate": layout.pki(&format!("{user}.crt")),
            "client-key": layout.pki(&format!("{user}.key")),
        } }],
        "contexts": [{ "name": "foreshore", "context": { "cluster": "foreshore", "user": user } }],
        "current-context": "foreshore",
    })
}
