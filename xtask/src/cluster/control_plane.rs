//! The control plane: what it is told, and its start.

use anyhow::Result;

use super::{
    layout::{API_PORT, CONTROL_PLANE, DOMAIN, Layout, PODS, SERVICES, node, write},
    machine::Machine,
    state::State,
};
use crate::shell;

/// Starts the database and the API server.
pub(crate) fn start_api(layout: &Layout, machine: &Machine<'_>, state: &mut State) -> Result<()> {
    machine.start(state, "etcd", "etcd", &etcd(layout))?;
    machine.start(state, "kube-apiserver", "kube-apiserver", &api_server(layout))
}

/// Starts what works through the API server, once that answers.
pub(crate) fn start_rest(layout: &Layout, machine: &Machine<'_>, state: &mut State) -> Result<()> {
    let name = "kube-controller-manager";
    machine.start(state, name, name, &controllers(layout))?;
    let name = "kube-scheduler";
    machine.start(state, name, name, &scheduler(layout))?;
    write(&layout.config("Corefile"), corefile(layout).as_bytes())?;
    let corefile = layout.config("Corefile").to_string_lossy().into_owned();
    machine.start(state, "coredns", "coredns", &["-conf".to_owned(), corefile])?;
    let volumes = [
        format!("--kubeconfig={}", layout.kubeconfig("local-volumes").display()),
        format!("--machines={}", layout.disks().display()),
    ];
    machine.start(state, "local-volumes", "local-volumes", &volumes)?;
    // A proxy must be that of some node; as the first one's it gives the control plane's network the Services too.
    machine.start(state, "kube-proxy-0", "kube-proxy", &proxy(layout, &node(1)))
}

/// A database that loses what it has when the power fails, which is what `up` starts from anyway.
fn etcd(layout: &Layout) -> Vec<String> {
    vec![
        "--name=etcd".to_owned(),
        format!("--data-dir={}", layout.run().join("etcd").display()),
        "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn api_server(layout: &Layout) -> Vec<String> {
    let pki = |file: &str| layout.pki(file).display().to_string();
    vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--secure-port={API_PORT}"),
        format!("--advertise-address={CONTROL_PLANE}"),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("kube-apiserver.crt")),
        format!("--tls-private-key-file={}", pki("kube-apiserver.key")),
        format!("--kubelet-client-certificate={}", pki("apiserver-kubelet.crt")),
        format!("--kubelet-client-key={}", pki("apiserver-kubelet.key")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        "--kubelet-preferred-address-types=InternalIP,Hostname".to_owned(),
        format!("--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}"),
        format!("--service-account-key-file={}", pki("service-accounts.pub")),
        format!(
            "--service-account-signing-key-file={}",
            pki("service-accounts.key")
        ),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Pods leave a dead node at once instead of after five minutes, which no test waits for.
        "--default-not-ready-toleration-seconds=5".to_owned(),
        "--default-unreachable-toleration-seconds=5".to_owned(),
        format!(
            "--audit-policy-file={}",
            shell::root().join("tests/cluster/audit.yaml").display()
        ),
        format!("--audit-log-path={}", layout.log("audit").display()),
        "--audit-log-maxsize=100".to_owned(),
        "--audit-log-maxbackup=1".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

fn controllers(layout: &Layout) -> Vec<String> {
    let pki = |file: &str| layout.pki(file).display().to_string();
    vec![
        format!(
            "--kubeconfig={}",
            layout.kubeconfig("kube-controller-manager").display()
        ),
        format!(
            "--service-account-private-key-file={}",
            pki("service-accounts.key")
        ),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        // Each controller is given an account of its own at the start, which takes seconds at the usual rate.
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
        // Instead of 50 s, so that a test of a dead node takes less.
        "--node-monitor-grace-period=20s".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

fn scheduler(layout: &Layout) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", layout.kubeconfig("kube-scheduler").display()),
        "--leader-elect=false".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

/// Arguments of the proxy of a node, for that node's machine and for the control plane's.
pub(crate) fn proxy(layout: &Layout, node: &str) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", layout.kubeconfig("kube-proxy").display()),
        format!("--cluster-cidr={PODS}"),
        format!("--hostname-override={node}"),
        "--proxy-mode=iptables".to_owned(),
        // The size of that table is the whole machine's, and not ours to set.
        "--conntrack-max-per-core=0".to_owned(),
    ]
}

/// Names of the cluster have answers; all others are unknown, at once, as there is no way to ask.
fn corefile(layout: &Layout) -> String {
    format!(
        ".:53 {{
  bind {CONTROL_PLANE}
  errors
  cache 5
  kubernetes {DOMAIN} in-addr.arpa {{
    endpoint https://{CONTROL_PLANE}:{API_PORT}
    kubeconfig {} foreshore
    pods insecure
  }}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
",
        layout.kubeconfig("coredns").display()
    )
}
