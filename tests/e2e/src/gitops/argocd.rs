//! Argo CD: its controller, and the server that renders what is in Git. They run beside the cluster, not in it, since there
//! is no image of them; with that they have an administrator's rights, as they have in their own manifests.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::{Repository, repository};
use crate::cluster::{Cluster, DEADLINE, eventually};

/// Namespace of Argo CD.
pub(crate) const NAMESPACE: &str = "argocd";
/// The Application of the plant, by the name that `deploy/argocd` gives it.
const APPLICATION: [&str; 4] = ["applications.argoproj.io", "plant", "-n", NAMESPACE];
/// Who applies, in `managedFields`.
pub(crate) const MANAGER: &str = "argocd-controller";
/// Definitions of its kinds, beside its programs.
const DEFINITIONS: [&str; 2] = ["application-crd.yaml", "appproject-crd.yaml"];
/// How often it looks whether there is a new commit, in seconds.
const PERIOD: u8 = 3;

/// Argo CD as it runs.
pub(crate) struct Argocd<'a> {
    cluster: &'a Cluster,
    programs: &'a Path,
    folder: &'a Path,
    parts: Vec<Child>,
}

impl<'a> Argocd<'a> {
    /// Installs and starts it; its files are in `folder`.
    pub(crate) async fn start(cluster: &'a Cluster, programs: &'a Path, folder: &'a Path) -> Result<Self> {
        for name in DEFINITIONS {
            let file = programs.join(name);
            let apply = ["apply", "--server-side", "-f", &file.to_string_lossy()];
            cluster.kubectl(&apply).await?;
        }
        // Kinds can be used a moment after they were defined.
        let installation = ["apply", "--server-side", "-k", "tests/gitops/installation"];
        eventually("Argo CD's kinds are known", DEADLINE, || async {
            cluster.kubectl(&installation).await.map(Some)
        })
        .await?;

        let (redis, renderer) = (free_address()?, free_address()?);
        let port = renderer.rsplit(':').next().context("port")?;
        let mut argocd = Self {
            cluster,
            programs,
            folder,
            parts: Vec::new(),
        };
        argocd.spawn(&["redis", &redis])?;
        argocd.spawn(&[
            "argocd-repo-server",
            "--disable-tls",
            "--redis",
            &redis,
            "--address",
            "127.0.0.1",
            "--port",
            port,
            "--metrics-address",
            "127.0.0.1",
            "--metrics-port",
            "0",
            "--revision-cache-expiration",
            &format!("{PERIOD}s"),
        ])?;
        argocd.spawn(&[
            "argocd-application-controller",
            "--namespace",
            NAMESPACE,
            "--redis",
            &redis,
            "--repo-server",
            &renderer,
            "--repo-server-plaintext",
            "--metrics-port",
            "0",
            "--app-resync",
            &PERIOD.to_string(),
            "--app-resync-jitter",
            "0",
            // What can't be rendered is told at once.
            "--repo-error-grace-period-seconds",
            "0",
            // So that the Application tells what it makes of each object.
            "--persist-resource-health",
        ])?;
        Ok(argocd)
    }

    fn spawn(&mut self, arguments: &[&str]) -> Result<()> {
        let name = arguments.first().context("name of a part")?;
        let log = File::create(self.log(name)).with_context(|| format!("log of {name}"))?;
        let scratch = self.folder.join("scratch");
        fs::create_dir_all(&scratch)?;
        // `kustomize` is beside the programs.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = [self.programs.to_owned()]
            .into_iter()
            .chain(std::env::split_paths(&path));
        let mut command = Command::new(self.programs.join("argocd"));
        command
            .args(arguments)
            .current_dir(self.folder)
            .env("ARGOCD_REPO_SERVER_LOGLEVEL", "warn")
            .env("ARGOCD_APPLICATION_CONTROLLER_LOGLEVEL", "warn")
            .env("PATH", std::env::join_paths(paths).context("PATH")?)
            // The cluster that it has to act on is that of KUBECONFIG.
            .env("ARGOCD_FAKE_IN_CLUSTER", "true")
            .env("ARGOCD_GPG_ENABLED", "false")
            .env("ARGOCD_ASK_PASS_SOCK", self.folder.join("ask-pass.sock"))
            .env("ARGOCD_TLS_DATA_PATH", &scratch)
            .env("ARGOCD_SSH_DATA_PATH", &scratch)
            .env("TMPDIR", &scratch)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        self.parts
            .push(command.spawn().with_context(|| format!("{name} did not start"))?);
        Ok(())
    }

    fn log(&self, part: &str) -> PathBuf {
        self.folder.join(format!("{part}.log"))
    }

    /// Gives it the Application of the plant that is in `deploy/argocd`, with another repository.
    pub(crate) async fn follow(&self, repository: &Repository, namespace: &str) -> Result<()> {
        let folder = self.folder.join("application");
        fs::create_dir_all(&folder)?;
        let shipped = self.cluster.root.join("deploy/argocd/application.yaml");
        fs::copy(&shipped, folder.join("application.yaml"))
            .with_context(|| format!("copy {}", shipped.display()))?;
        let other = json!({
            "$patch": "delete", "apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
            "metadata": {"name": "foreshore", "namespace": NAMESPACE},
        });
        let replace = |path: &str, value: &str| json!({"op": "replace", "path": path, "value": value});
        let source = json!([
            replace("/spec/source/repoURL", &repository.url()),
            replace("/spec/source/targetRevision", repository::BRANCH),
            replace("/spec/source/path", repository::FOLDER),
            replace("/spec/destination/namespace", namespace),
        ]);
        let kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": ["application.yaml"],
            "patches": [
                {"patch": other.to_string()},
                {"patch": source.to_string(), "target": {"kind": "Application", "name": "plant"}},
            ],
        });
        fs::write(folder.join("kustomization.yaml"), kustomization.to_string())?;
        let apply = ["apply", "--server-side", "-k", &folder.to_string_lossy()];
        self.cluster.kubectl(&apply).await.map(drop)
    }

    /// The Application.
    pub(crate) async fn application(&self) -> Result<Value> {
        self.cluster.json(&[&["get"][..], &APPLICATION].concat()).await
    }

    /// Waits until the cluster is what a commit says, and Argo CD calls everything healthy; returns the Application.
    pub(crate) async fn in_force(&self, commit: &str) -> Result<Value> {
        eventually("the commit is in force", DEADLINE, || async {
            let application = self.application().await?;
            let status = &application["status"];
            let (sync, health) = (&status["sync"], &status["health"]);
            let idle = application["operation"].is_null() && status["operationState"]["phase"] == "Succeeded";
            if sync["status"] != "Synced"
                || sync["revision"] != commit
                || health["status"] != "Healthy"
                || !idle
            {
                bail!("Argo CD is at {}", summary(&application));
            }
            Ok(Some(application))
        })
        .await
    }

    /// Applies a commit once more, as a user does by hand, and waits for the end.
    pub(crate) async fn apply_again(&self, commit: &str) -> Result<Value> {
        let before = self.application().await?;
        let options = &before["spec"]["syncPolicy"]["syncOptions"];
        let operation = json!({"operation": {
            "initiatedBy": {"username": "somebody"},
            "sync": {"revision": commit, "prune": true, "syncOptions": options},
        }})
        .to_string();
        let patch = [&["patch"][..], &APPLICATION, &["--type=merge", "-p", &operation]].concat();
        self.cluster.kubectl(&patch).await?;
        let started = &before["status"]["operationState"]["startedAt"];
        eventually("the commit is applied again", DEADLINE, || async {
            let application = self.application().await?;
            let state = &application["status"]["operationState"];
            if state["startedAt"] == *started || state["phase"] != "Succeeded" {
                bail!("Argo CD is at {}", summary(&application));
            }
            Ok(Some(application))
        })
        .await
    }

    /// Deletes the Application with all that it made, as its users do with `--cascade`.
    pub(crate) async fn delete_application(&self) -> Result<()> {
        let finalizer = r#"{"metadata":{"finalizers":["resources-finalizer.argocd.argoproj.io"]}}"#;
        let patch = [&["patch"][..], &APPLICATION, &["--type=merge", "-p", finalizer]].concat();
        self.cluster.kubectl(&patch).await?;
        let delete = [&["delete"][..], &APPLICATION, &["--wait=false"]].concat();
        self.cluster.kubectl(&delete).await.map(drop)
    }

    /// Ends it and removes its namespace and its kinds.
    pub(crate) async fn remove(mut self) -> Result<()> {
        for part in &mut self.parts {
            part.kill().await?;
        }
        let namespace = ["delete", "namespace", NAMESPACE, "--timeout=120s"];
        self.cluster.kubectl(&namespace).await?;
        for name in DEFINITIONS {
            let file = self.programs.join(name);
            let delete = ["delete", "--timeout=120s", "-f", &file.to_string_lossy()];
            self.cluster.kubectl(&delete).await?;
        }
        Ok(())
    }

    /// Prints what its parts said last.
    pub(crate) fn explain(&self) {
        for part in ["redis", "argocd-repo-server", "argocd-application-controller"] {
            let text = fs::read_to_string(self.log(part)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let last = lines.len().saturating_sub(40);
            eprintln!("--- {part}\n{}", lines.get(last..).unwrap_or_default().join("\n"));
        }
    }
}

/// What Argo CD makes of the plant, in a line.
pub(crate) fn summary(application: &Value) -> String {
    let status = &application["status"];
    let resources = status["resources"].as_array();
    let behind: Vec<_> = resources
        .into_iter()
        .flatten()
        .filter(|resource| {
            let health = &resource["health"]["status"];
            resource["status"] != "Synced" || !(health.is_null() || health == "Healthy")
        })
        .map(|resource| {
            format!(
                "{} {} is {} and {}",
                resource["kind"], resource["name"], resource["status"], resource["health"]
            )
        })
        .collect();
    format!(
        "{} {}, {}, operation {}: {}; {}; {}",
        status["sync"]["revision"],
        status["sync"]["status"],
        status["health"],
        status["operationState"]["phase"],
        status["operationState"]["message"],
        status["conditions"],
        behind.join(", ")
    )
}

/// An address that nobody listens on.
fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("free port")?;
    Ok(listener.local_addr()?.to_string())
}
