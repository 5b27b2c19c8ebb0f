//! What stands in for a machine: a network, processes and mounts of its own. All of it ends with its first process.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    binary::Programs,
    layout::{Layout, namespace, namespace_file},
    processes::{self, Process},
    state::{Component, State},
};

/// How long a machine's first process has to appear.
const START: Duration = Duration::from_secs(5);
/// Where no distribution's `PATH` of other users than root looks, but what kubelet and kube-proxy call is.
const SYSTEM_PROGRAMS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// A machine that runs.
pub(crate) struct Machine<'a> {
    layout: &'a Layout,
    programs: &'a Programs,
    number: u8,
    init: Process,
}

impl<'a> Machine<'a> {
    /// Starts the first process in the machine's network, which is there.
    pub(crate) fn boot(layout: &'a Layout, programs: &'a Programs, number: u8) -> Result<Self> {
        let mut command = Command::new("setsid");
        command
            .args(["nsenter", &format!("--net={}", namespace_file(number).display())])
            .args(["unshare", "--mount", "--propagation", "private"])
            .args(["--pid", "--fork", "--mount-proc"])
            .arg(programs.init())
            // It has no use for this; whoever finds it has.
            .arg(layout.run());
        detach(layout, &mut command, &namespace(number))?;
        let start = Instant::now();
        let init = loop {
            match processes::init(number)? {
                Some(init) => break init,
                None if start.elapsed() < START => thread::sleep(Duration::from_millis(10)),
                None => bail!("{command:?} started nothing within {} s", START.as_secs()),
            }
        };
        let machine = Self {
            layout,
            programs,
            number,
            init,
        };
        // What a pod shares with its node reaches it as on a real node.
        machine.mount(&["--make-rshared", "/"])?;
        // Locks, sockets and the pods' namespaces: each machine has its own, and what is in them ends with it.
        machine.mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
        Ok(machine)
    }

    /// Returns a machine that runs.
    pub(crate) fn running(layout: &'a Layout, programs: &'a Programs, number: u8) -> Result<Self> {
        let init = processes::init(number)?.with_context(|| format!("node {number} does not run"))?;
        Ok(Self {
            layout,
            programs,
            number,
            init,
        })
    }

    /// Mounts something where only this machine sees it.
    pub(crate) fn mount(&self, arguments: &[&str]) -> Result<()> {
        let mut mount = self.command(Path::new("mount"));
        mount.args(arguments);
        let output = mount
            .output()
            .with_context(|| format!("{mount:?} did not start"))?;
        if !output.status.success() {
            bail!(
                "{mount:?} ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Shows a file or a directory at another place too.
    pub(crate) fn bind(&self, source: &Path, target: &str) -> Result<()> {
        self.mount(&["--bind", &source.to_string_lossy(), target])
    }

    /// Makes a command that runs on the machine.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.enter()).arg(program);
        command
    }

    /// Starts a component of Kubernetes, under a name that no other machine's component has.
    pub(crate) fn start(
        &self,
        state: &mut State,
        name: &str,
        component: &str,
        arguments: &[String],
    ) -> Result<()> {
        let program = self.programs.kubernetes();
        let arguments = [&[component.to_owned()], arguments].concat();
        self.start_program(state, name, &program.to_string_lossy(), &arguments)
    }

    /// Starts a program, and notes that it should run.
    pub(crate) fn start_program(
        &self,
        state: &mut State,
        name: &str,
        program: &str,
        arguments: &[String],
    ) -> Result<()> {
        let mut command = Command::new("setsid");
        command
            .arg("nsenter")
            .args(self.enter())
            .arg(program)
            .args(arguments);
        let pid = detach(self.layout, &mut command, name)?;
        let process = Process::of(pid)
            .with_context(|| format!("{name} ended at once; see {}", self.layout.log(name).display()))?;
        state.components.retain(|component| component.name != name);
        state.components.push(Component {
            machine: self.number,
            name: name.to_owned(),
            process,
        });
        state.save(self.layout)
    }

    fn enter(&self) -> [String; 5] {
        let target = self.init.pid.to_string();
        ["--target", &target, "--mount", "--pid", "--net"].map(str::to_owned)
    }
}

/// Starts a command that goes on when we end, with a log, and nothing of our environment.
fn detach(layout: &Layout, command: &mut Command, name: &str) -> Result<u32> {
    let path = layout.log(name);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let path = env::var("PATH").unwrap_or_default();
    let child = command
        .env_clear()
        .env("PATH", format!("{path}:{SYSTEM_PROGRAMS}"))
        .env("HOME", layout.run())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("log")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("{command:?} did not start"))?;
    Ok(child.id())
}
