//! kubectl, Helm and the machines of the cluster, as a user has them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{process::Command, time::sleep};

/// Namespace of the operator.
pub(crate) const OPERATOR: &str = "foreshore-system";
/// Namespace of the example.
pub(crate) const PLANT: &str = "bottling";

/// Longest that a command may take.
const COMMAND: Duration = Duration::from_secs(180);
/// How long something may take to become so: generous, since a deadline is no measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// A cluster, by its tools.
pub(crate) struct Cluster {
    /// Root of the checkout.
    pub(crate) root: PathBuf,
    /// Program that switches nodes off and on.
    pub(crate) machines: Option<PathBuf>,
    /// The program, as a user has it.
    pub(crate) foreshore: PathBuf,
    /// Folder of Argo CD's programs.
    pub(crate) argocd: Option<PathBuf>,
    /// Whether everything runs at its full count.
    pub(crate) full: bool,
}

impl Cluster {
    /// Whether nodes can be switched off.
    pub(crate) fn has_machines(&self) -> bool {
        self.machines.is_some()
    }

    /// Runs kubectl and returns what it printed.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run(Path::new("kubectl"), arguments, None).await
    }

    /// Runs kubectl with a manifest as its input.
    pub(crate) async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.run(Path::new("kubectl"), arguments, Some(input)).await
    }

    /// Merges a change into an object of the plant, and returns what kubectl says of it.
    pub(crate) async fn patch(&self, kind: &str, name: &str, change: &str) -> Result<String> {
        let patch = ["patch", kind, name, "-n", PLANT, "--type=merge", "-p", change];
        self.kubectl(&patch).await
    }

    /// Runs `kubectl … -o json`.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["-o", "json"]].concat();
        let text = self.kubectl(&arguments).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// The items of `kubectl get … -o json`.
    pub(crate) async fn items(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let list = self.json(&[&["get"], arguments].concat()).await?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Runs Helm.
    pub(crate) async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.run(Path::new("helm"), arguments, None).await
    }

    /// Runs `kubectl foreshore`.
    pub(crate) async fn foreshore(&self, arguments: &[&str]) -> Result<String> {
        let arguments = [&["kubectl"], arguments].concat();
        self.run(&self.foreshore, &arguments, None).await
    }

    /// What `kubectl foreshore` printed, whether it succeeded or not.
    pub(crate) async fn output(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.foreshore);
        let command = command.arg("kubectl").args(arguments).kill_on_drop(true).output();
        let output = tokio::time::timeout(COMMAND, command).await??;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The ledger of all brokers of a namespace, as `kubectl foreshore status` shows it.
    pub(crate) async fn ledger(&self, namespace: &str) -> Result<Vec<Value>> {
        let status = self.foreshore(&["status", "--output", "json"]).await?;
        let status: Value = serde_json::from_str(&status).context("status")?;
        let ledger = status["ledger"].as_array().context("status has no ledger")?;
        let of_namespace = |path: &&Value| {
            let path = path["path"].as_str().unwrap_or_default();
            path.contains(&format!("/{namespace}/"))
        };
        Ok(ledger.iter().filter(of_namespace).cloned().collect())
    }

    /// Switches a node or the API server off or on.
    pub(crate) async fn machine(&self, task: &[&str]) -> Result<String> {
        let machines = self.machines.clone().context("no machines")?;
        self.run(&machines, &[&["cluster"], task].concat(), None).await
    }

    async fn run(&self, program: &Path, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let what = format!("{} {}", program.display(), arguments.join(" "));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.root)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| what.clone())?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            use tokio::io::AsyncWriteExt;
            stdin.write_all(input.as_bytes()).await?;
        }
        let output = tokio::time::timeout(COMMAND, child.wait_with_output()).await;
        let output = output.with_context(|| format!("{what}: no end within {COMMAND:?}"))??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{what}: {}: {}", output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes a namespace, after one of that name that an earlier run left is gone.
    pub(crate) async fn fresh_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "namespace", name, "--ignore-not-found"])
            .await?;
        self.kubectl(&["create", "namespace", name]).await.map(drop)
    }

    /// Waits until a namespace that is being deleted is gone.
    pub(crate) async fn namespace_goes(&self, name: &str, deadline: Duration) -> Result<()> {
        eventually("the namespace is gone", deadline, || async {
            let left = self.items(&["namespaces"]).await?;
            match left.iter().find(|left| left["metadata"]["name"] == name) {
                Some(left) => bail!("{name} is still there: {}", left["status"]["conditions"]),
                None => Ok(Some(())),
            }
        })
        .await
    }

    /// The name of a pod by its labels; `None` while there is none that is ready.
    pub(crate) async fn pod(&self, component: &str, instance: &str) -> Result<Option<Value>> {
        let selector =
            format!("app.kubernetes.io/component={component},app.kubernetes.io/instance={instance}");
        let pods = self.items(&["pods", "-n", PLANT, "-l", &selector]).await?;
        Ok(pods.into_iter().find(is_ready))
    }

    /// Prints what a user would look at.
    pub(crate) async fn explain(&self) {
        let looks: [&[&str]; 6] = [
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "foreshore", "-A"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &["get", "leases", "-n", OPERATOR],
            &["describe", "pods", "-n", PLANT],
            &[
                "logs",
                "-n",
                OPERATOR,
                "-l",
                "app.kubernetes.io/name=foreshore",
                "--tail=60",
                "--prefix",
            ],
        ];
        for look in looks {
            match self.kubectl(look).await {
                Ok(text) => {
                    let lines: Vec<_> = text.lines().collect();
                    let last = lines.len().saturating_sub(120);
                    eprintln!(
                        "--- kubectl {}\n{}",
                        look.join(" "),
                        lines.get(last..).unwrap_or_default().join("\n")
                    );
                }
                Err(error) => eprintln!("--- {error:#}"),
            }
        }
    }
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && condition(pod, "Ready")["status"] == "True"
}

/// How often the container of a pod was started again.
pub(crate) fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"]
        .as_u64()
        .unwrap_or(0)
}

/// The condition of a type.
pub(crate) fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == type_);
    found.unwrap_or(&Value::Null)
}

/// Looks again and again until it is so; an error of a look is told when it never becomes so.
pub(crate) async fn eventually<T, F>(what: &str, deadline: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let end = Instant::now() + deadline;
    loop {
        let seen = look().await;
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if Instant::now() >= end {
            return match seen {
                Err(error) => Err(error.context(format!("not within {deadline:?}: {what}"))),
                Ok(_) => bail!("not within {deadline:?}: {what}"),
            };
        }
        sleep(Duration::from_millis(300)).await;
    }
}
