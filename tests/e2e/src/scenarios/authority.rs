//! An authority that somebody else looks after.

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{install, pods::Pods};
use crate::cluster::{Cluster, DEADLINE, OPERATOR, eventually};

/// Secret with the given authority, as cert-manager would write it.
const GIVEN: &str = "plant-authority";
/// Secret in which the operator keeps roots and their order.
const KEPT: &str = "foreshore-authority";

/// A given root signs once every role trusts it, and so does the next one of the same name; data flows, no role is
/// started again, and the operator goes back to its own roots.
pub(super) async fn is_followed(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let roles = Pods::of_plant(cluster).await?;
    let first = give(cluster).await?;
    chart(cluster, GIVEN).await?;
    signs(cluster, &first).await.context("the first")?;
    install::flows(cluster).await?;
    let second = give(cluster).await?;
    signs(cluster, &second).await.context("the second")?;
    install::well(cluster).await?;
    install::flows(cluster).await?;
    chart(cluster, "").await?;
    cluster
        .kubectl(&["delete", "secret", GIVEN, "-n", OPERATOR])
        .await?;
    install::well(cluster).await?;
    install::flows(cluster).await?;
    roles.stay(cluster).await
}

/// Writes a new authority into the Secret, and gives back its certificate.
async fn give(cluster: &Cluster) -> Result<String> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Plant");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?.pem();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": GIVEN, "namespace": OPERATOR },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": certificate, "tls.key": key.serialize_pem() },
    });
    cluster
        .kubectl_with(&["apply", "--server-side", "-f", "-"], &secret.to_string())
        .await?;
    Ok(certificate)
}

async fn chart(cluster: &Cluster, secret: &str) -> Result<()> {
    let value = format!("authority.secretName={secret}");
    let upgrade = ["upgrade", "foreshore", "charts/foreshore", "-n", OPERATOR];
    let options = ["--reuse-values", "--set", &value, "--wait", "--timeout", "120s"];
    cluster.helm(&[&upgrade[..], &options].concat()).await.map(drop)
}

/// Waits until a root signs.
async fn signs(cluster: &Cluster, certificate: &str) -> Result<()> {
    eventually("the given root signs", DEADLINE, || async {
        let kept = cluster.json(&["get", "secret", KEPT, "-n", OPERATOR]).await?;
        let state = kept["data"]["authority.json"].as_str().context("state")?;
        let state: Value = serde_json::from_slice(&BASE64_STANDARD.decode(state)?)?;
        let roots = state["roots"].as_array().context("roots")?;
        let found: Vec<_> = roots.iter().map(|root| root["state"].to_string()).collect();
        let signs = roots.iter().any(|root| {
            let text = root["certificate"].as_str().unwrap_or_default();
            root["state"] == "issuing" && lines(text) == lines(certificate)
        });
        ensure!(signs, "the roots are {found:?}");
        Ok(Some(()))
    })
    .await
}

/// Lines of a PEM, whichever way they end.
fn lines(pem: &str) -> Vec<&str> {
    pem.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}
