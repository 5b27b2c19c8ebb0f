//! A cluster of somebody else, that `FORESHORE_KUBECONFIG` names: it is used, and never changed.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{Task, binary, client::become_program, layout::Layout};
use crate::shell;

/// The file that `FORESHORE_KUBECONFIG` names, if it does.
pub(crate) fn kubeconfig() -> Result<Option<PathBuf>> {
    let Some(path) = env::var_os("FORESHORE_KUBECONFIG").filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let path = std::path::absolute(PathBuf::from(path)).context("FORESHORE_KUBECONFIG")?;
    if !path.is_file() {
        bail!(
            "FORESHORE_KUBECONFIG: found {}, which is no file; allowed: a kubeconfig",
            path.display()
        );
    }
    Ok(Some(path))
}

/// Does with that cluster what can be done from here.
pub(crate) fn run(task: &Task, kubeconfig: &Path) -> Result<()> {
    let named = |name: &str| -> Result<PathBuf> {
        // The installed one may suit that cluster better than ours.
        if shell::is_installed(name) {
            return Ok(PathBuf::from(name));
        }
        Ok(binary::build(&Layout::new()?)?.folder.join(name))
    };
    let elsewhere = format!(
        "FORESHORE_KUBECONFIG names the cluster of {}",
        kubeconfig.display()
    );
    match task {
        Task::Up { .. } | Task::Down => {
            println!("{elsewhere}: there is nothing to do");
            Ok(())
        }
        Task::Status => become_program(
            command(kubeconfig, &named("kubectl")?),
            &["get", "nodes", "--output", "wide"].map(OsString::from),
        ),
        Task::LoadImage { files } => bail!(
            "{elsewhere}, whose nodes can't be reached from here; give them {} with their own tool, such as \
             `kind load image-archive FILE`, or `k3s ctr images import FILE` on each node",
            files
                .iter()
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        ),
        Task::KillNode { .. } | Task::StartNode { .. } => bail!(
            "{elsewhere}, whose nodes can't be switched from here; do it with their own tool, such as \
             `docker kill NODE` and `docker start NODE` for kind"
        ),
        Task::StopApi | Task::StartApi => {
            bail!("{elsewhere}, whose API server can't be switched from here; do it with its own tool")
        }
        Task::Kubectl { arguments } => become_program(command(kubeconfig, &named("kubectl")?), arguments),
        Task::Helm { arguments } => become_program(command(kubeconfig, &named("helm")?), arguments),
        Task::Run { program, arguments } => become_program(command(kubeconfig, program), arguments),
    }
}

/// Makes a command that reaches that cluster as from anywhere.
fn command(kubeconfig: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("KUBECONFIG", kubeconfig);
    command
}
