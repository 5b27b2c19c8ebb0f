//! The network of the machines: a namespace for each, joined by a bridge in that of the control plane. No route leads
//! out of it, so that nothing on a node finds its way to the world by chance.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::layout::{CONTROL_PLANE, NAMESPACES, SERVICES, address, namespace, namespace_file, pods};

/// Makes the control plane's network: the bridge, and the ways to the pods.
pub(crate) fn make_control_plane(nodes: u8) -> Result<()> {
    namespace_with(0, &bridge(nodes))
}

/// Makes a node's network and joins it to the others.
pub(crate) fn connect(node: u8, nodes: u8) -> Result<()> {
    namespace_with(node, &[])?;
    batch(0, &port(node))?;
    batch(node, &wire(node, nodes))
}

/// Takes a node out of the network, as if it had lost its power.
pub(crate) fn disconnect(node: u8) -> Result<()> {
    delete_namespace(node)?;
    if namespace_file(0).exists() {
        // Gone with the namespace of the other end, but a little later.
        drop(ip(&["-n", &namespace(0), "link", "del", &port_name(node)]).output());
    }
    Ok(())
}

/// Removes where namespaces are named, which `ip` made, once none is named there.
pub(crate) fn forget_namespaces() {
    let directory = Path::new(NAMESPACES);
    if directory.read_dir().is_ok_and(|mut names| names.next().is_none()) {
        // It is a mount where `ip` made it, and no loss where another did.
        drop(
            Command::new("umount")
                .arg(directory)
                .stderr(Stdio::null())
                .status(),
        );
        drop(fs::remove_dir(directory));
    }
}

/// Removes a machine's namespace, if there is one.
pub(crate) fn delete_namespace(machine: u8) -> Result<()> {
    if !namespace_file(machine).exists() {
        return Ok(());
    }
    finish(&mut ip(&["netns", "del", &namespace(machine)]))
}

fn namespace_with(machine: u8, commands: &[String]) -> Result<()> {
    finish(&mut ip(&["netns", "add", &namespace(machine)]))?;
    batch(machine, &["link set lo up".to_owned()])?;
    batch(machine, commands)?;
    set(machine, "net.ipv4.ip_forward=1")?;
    // Frames that only pass a bridge are none of the packet filter's business; not every kernel has this switch.
    set(machine, "-e net.bridge.bridge-nf-call-iptables=0")
}

/// The bridge, and where the pods of each node are.
fn bridge(nodes: u8) -> Vec<String> {
    let mut commands = vec![
        "link add switch type bridge".to_owned(),
        format!("addr add {CONTROL_PLANE}/24 dev switch"),
        "link set switch up".to_owned(),
        // The packet filter only gets to replace a Service's address once there is some way to it.
        format!("route add {SERVICES} dev switch"),
    ];
    commands.extend((1..=nodes).map(way_to_pods));
    commands
}

/// The cable from the bridge to a node, from the bridge's side.
fn port(node: u8) -> Vec<String> {
    let port = port_name(node);
    vec![
        format!(
            "link add {port} type veth peer name eth0 netns {}",
            namespace(node)
        ),
        format!("link set {port} master switch up"),
    ]
}

/// The same cable from the node's side, and where everything else is.
fn wire(node: u8, nodes: u8) -> Vec<String> {
    let mut commands = vec![
        format!("addr add {}/24 dev eth0", address(node)),
        "link set eth0 up".to_owned(),
        format!("route add default via {CONTROL_PLANE}"),
    ];
    let others = (1..=nodes).filter(|other| *other != node);
    commands.extend(others.map(way_to_pods));
    commands
}

fn way_to_pods(node: u8) -> String {
    format!("route add {} via {}", pods(node), address(node))
}

fn port_name(node: u8) -> String {
    format!("port{node}")
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}

/// Runs commands of `ip` in a machine's namespace.
fn batch(machine: u8, commands: &[String]) -> Result<()> {
    let mut command = ip(&["-n", &namespace(machine), "-batch", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?} did not start"))?;
    if let Some(mut input) = child.stdin.take() {
        let lines: String = commands.iter().map(|line| format!("{line}\n")).collect();
        input.write_all(lines.as_bytes()).context("tell ip what to do")?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?} ended with {status}, told to {}", commands.join("; "));
    }
    Ok(())
}

/// Drops what comes to a port of the control plane, or lets it in again.
pub(crate) fn silence(port: u16, silent: bool) -> Result<()> {
    let filter = |what: &str| {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--net={}", namespace_file(0).display()));
        enter.args([
            "iptables",
            "--wait",
            what,
            "INPUT",
            "--protocol",
            "tcp",
            "--dport",
        ]);
        enter.arg(port.to_string()).args(["--jump", "DROP"]);
        enter.stderr(Stdio::null());
        enter
    };
    let is_silent = filter("--check")
        .status()
        .context("iptables did not start")?
        .success();
    if is_silent == silent {
        return Ok(());
    }
    finish(&mut filter(if silent { "--insert" } else { "--delete" }))
}

fn set(machine: u8, setting: &str) -> Result<()> {
    let mut enter = Command::new("nsenter");
    enter.arg(format!("--net={}", namespace_file(machine).display()));
    finish(enter.args(["sysctl", "-q"]).args(setting.split(' ')))
}

fn finish(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{command:?} did not start"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_knows_the_way_to_the_pods_of_all_others_and_none_out() {
        assert_eq!(
            wire(2, 3),
            [
                "addr add 172.30.0.12/24 dev eth0",
                "link set eth0 up",
                "route add default via 172.30.0.1",
                "route add 10.244.1.0/24 via 172.30.0.11",
                "route add 10.244.3.0/24 via 172.30.0.13",
            ]
        );
        assert!(!bridge(3).iter().any(|command| command.contains("default")));
    }
}
