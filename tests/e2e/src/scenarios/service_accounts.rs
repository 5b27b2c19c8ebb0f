//! Clients in the cluster show the broker the tokens of their service accounts.

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{install, pods::Pods};
use crate::{
    cluster::{Cluster, DEADLINE, PLANT, eventually},
    forward::Forward,
};

/// Method by which clients of Azure IoT Operations show such a token.
const METHOD: &str = "K8S-SAT";

/// Whom a token has to be for.
const AUDIENCE: &str = "mqtt.bottling";

/// The broker of the example takes tokens of the cluster's service accounts: who shows one for its audience comes in, who
/// shows another does not, and nothing was restarted for it.
pub(super) async fn come_in(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let pods = Pods::of_plant(cluster).await?;
    let way = format!(
        r#"[{{"op":"add","path":"/spec/listeners/0/authentication/0","value":{{"serviceAccount":{{"audiences":["{AUDIENCE}"]}}}}}}]"#
    );
    let patch = [
        "patch",
        "broker.foreshore.dev",
        "broker",
        "-n",
        PLANT,
        "--type=json",
        "-p",
    ];
    cluster.kubectl(&[&patch[..], &[&way]].concat()).await?;
    let shown = show(cluster).await;
    // Whatever was found, the example is as it was for those that come after.
    let back = r#"[{"op":"remove","path":"/spec/listeners/0/authentication/0"}]"#;
    cluster.kubectl(&[&patch[..], &[back]].concat()).await?;
    shown?;
    pods.stay(cluster).await?;
    install::well(cluster).await
}

async fn show(cluster: &Cluster) -> Result<()> {
    let pod = cluster.pod("broker", "broker").await?.context("no broker")?;
    let pod = pod["metadata"]["name"].as_str().context("name of the broker")?;
    let forward = Forward::start(&["port-forward", "-n", PLANT, pod, ":1883"]).await?;
    let good = token(cluster, AUDIENCE).await?;
    eventually("a service account comes in", DEADLINE, || async {
        match connect(forward.address(), &good).await? {
            0x00 => Ok(Some(())),
            reason => bail!("CONNACK with {reason:#04x}"),
        }
    })
    .await?;
    let other = token(cluster, "another.audience").await?;
    match connect(forward.address(), &other).await? {
        0x87 => Ok(()),
        reason => bail!("a token for another audience: CONNACK with {reason:#04x}, not 0x87"),
    }
}

/// A token of a service account of the plant, as the kubelet projects one into a pod.
async fn token(cluster: &Cluster, audience: &str) -> Result<String> {
    let audience = format!("--audience={audience}");
    let token = ["create", "token", "default", "-n", PLANT, &audience];
    Ok(cluster.kubectl(&token).await?.trim().to_owned())
}

/// Connects with a token as authentication data (MQTT 5.0 section 3.1), and tells the reason code of CONNACK.
async fn connect(address: &str, token: &str) -> Result<u8> {
    let mut properties = vec![0x15];
    properties.extend(prefixed(METHOD)?);
    properties.push(0x16);
    properties.extend(prefixed(token)?);
    // Version 5, clean start, 60 s of keep-alive.
    let mut body = prefixed("MQTT")?;
    body.extend([5, 0x02, 0, 60]);
    body.extend(variable(properties.len()));
    body.extend(properties);
    body.extend(prefixed("pod")?);
    let mut packet = vec![0x10];
    packet.extend(variable(body.len()));
    packet.extend(body);
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&packet).await?;
    // CONNACK of less than 128 bytes: type, length, flags, reason code.
    let mut head = [0; 4];
    let reading = stream.read_exact(&mut head);
    tokio::time::timeout(DEADLINE, reading)
        .await
        .context("no CONNACK")??;
    match head {
        [0x20, _, _, reason] => Ok(reason),
        other => bail!("found {other:02x?}, not CONNACK"),
    }
}

fn prefixed(text: &str) -> Result<Vec<u8>> {
    let length = u16::try_from(text.len()).context("a text for MQTT")?;
    Ok([&length.to_be_bytes()[..], text.as_bytes()].concat())
}

/// A variable byte integer (section 1.5.5).
fn variable(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = value >= 128;
        bytes.push((value % 128) as u8 | if more { 0x80 } else { 0 });
        value /= 128;
        if !more {
            return bytes;
        }
    }
}
