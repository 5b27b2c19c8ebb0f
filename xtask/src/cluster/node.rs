//! A node: what it is told, and its start.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    binary::Programs,
    cgroups, control_plane, images,
    layout::{CONTROL_PLANE, DOMAIN, Layout, address, namespace, node, pods, write},
    machine::Machine,
    state::State,
};

/// Where a node's containerd is asked, on the node.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Where a kubelet keeps its things; part of that can't be set.
const KUBELET: &str = "/var/lib/kubelet";
/// Directories of the machine that a node has to itself, and their names on the node's disk.
pub(crate) const OWN: &[(&str, &str)] = &[
    ("kubelet", KUBELET),
    ("log", "/var/log"),
    ("networks", "/var/lib/cni"),
];
/// Settings of the kernel that a kubelet wants, and would change for the whole machine.
const KERNEL: &[(&str, &str)] = &[
    ("kernel/keys/root_maxbytes", "25000000"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
];

/// Boots a node and starts its containerd.
pub(crate) fn boot<'a>(
    layout: &'a Layout,
    programs: &'a Programs,
    state: &mut State,
    number: u8,
) -> Result<Machine<'a>> {
    cgroups::make(number)?;
    let machine = Machine::boot(layout, programs, number)?;
    let disk = layout.disk(number);
    for &(name, shown) in OWN {
        let own = disk.join(name);
        for directory in [own.as_path(), Path::new(shown)] {
            fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        machine.bind(&own, shown)?;
    }
    pretend(layout, &machine)?;

    let toml = layout.config(&format!("containerd-{number}.toml"));
    write(&toml, containerd(layout, number).as_bytes())?;
    let network = disk.join("cni/pods.conflist");
    write(
        &network,
        &serde_json::to_vec_pretty(&pod_network(layout, number))?,
    )?;
    let arguments = ["--config".to_owned(), toml.to_string_lossy().into_owned()];
    machine.start_program(state, &format!("containerd-{number}"), "containerd", &arguments)?;
    Ok(machine)
}

/// Starts what works through the API server, once that answers, and containerd does.
pub(crate) fn join(layout: &Layout, machine: &Machine<'_>, state: &mut State, number: u8) -> Result<()> {
    let name = node(number);
    let file = layout.config(&format!("kubelet-{number}.json"));
    write(&file, &serde_json::to_vec_pretty(&kubelet(layout, number))?)?;
    // No name server but the cluster's own, and no domain of this machine.
    write(&layout.config("resolv.conf"), b"")?;
    let arguments = [
        format!("--config={}", file.display()),
        format!("--kubeconfig={}", layout.kubeconfig(&name).display()),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", address(number)),
        format!("--root-dir={KUBELET}"),
    ];
    machine.start(state, &format!("kubelet-{number}"), "kubelet", &arguments)?;
    let arguments = control_plane::proxy(layout, &name);
    machine.start(state, &format!("kube-proxy-{number}"), "kube-proxy", &arguments)
}

/// Shows the kubelet the kernel settings that it wants, so that it leaves those of the whole machine alone.
fn pretend(layout: &Layout, machine: &Machine<'_>) -> Result<()> {
    for (setting, wanted) in KERNEL {
        let real = format!("/proc/sys/{setting}");
        // Not every kernel has every setting; and what is as wanted, is left alone anyway.
        if fs::read_to_string(&real).map_or(true, |found| found.trim() == *wanted) {
            continue;
        }
        let shown = layout.config(&setting.replace('/', "."));
        write(&shown, format!("{wanted}\n").as_bytes())?;
        machine.bind(&shown, &real)?;
    }
    Ok(())
}

fn containerd(layout: &Layout, number: u8) -> String {
    let disk = layout.disk(number);
    let text = |path: PathBuf| Value::from(path.to_string_lossy().into_owned()).to_string();
    format!(
        r#"version = 2
root = {root}
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{CONTAINERD}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Inside another container not even root may lower it.
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = {network}
"#,
        root = text(disk.join("containerd")),
        pause = images::PAUSE,
        network = text(disk.join("cni")),
    )
}

/// A cable from each pod to its node, and no bridge: so what two pods of a node send to each other passes the node's
/// packet filter, where Services are.
fn pod_network(layout: &Layout, number: u8) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": layout.disk(number).join("addresses"),
                    "ranges": [[{ "subnet": pods(number) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

fn kubelet(layout: &Layout, number: u8) -> Value {
    let name = node(number);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": layout.pki("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": layout.pki(&format!("{name}.crt")),
        "tlsPrivateKeyFile": layout.pki(&format!("{name}.key")),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", namespace(number)),
        "clusterDNS": [CONTROL_PLANE],
        "clusterDomain": DOMAIN,
        "resolvConf": layout.config("resolv.conf"),
        // The machine may be a container, or an old one.
        "failSwapOn": false,
        "failCgroupV1": false,
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 20,
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        // There is nowhere to pull an image from again.
        "imageGCHighThresholdPercent": 100,
        "volumePluginDir": format!("{KUBELET}/volume-plugins"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_files_groups_and_addresses_of_its_own() {
        let layout = Layout::new().unwrap();
        let (one, two) = (kubelet(&layout, 1), kubelet(&layout, 2));
        assert_eq!(one["cgroupRoot"], "/foreshore-1");
        assert_ne!(one["tlsCertFile"], two["tlsCertFile"]);
        assert_eq!(
            pod_network(&layout, 2)["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
            "10.244.2.0/24"
        );
        assert_ne!(containerd(&layout, 1), containerd(&layout, 2));
    }
}
