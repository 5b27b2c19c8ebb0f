//! `kubectl foreshore …`: what `foreshore status`, `invoke` and `check` are on one machine, for an installation in a
//! cluster, with the rights of who runs it.
//!
//! The program is a plugin of kubectl under the name `kubectl-foreshore`.

use anyhow::{Context, Result, ensure};
use foreshore_operator::kubernetes::access::{Access, PodName};
use foreshore_record::PathLedger;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{invoke, status, trace};
use crate::admin::{self, BrokerRequest, LedgerText, Request};

mod bundle;
mod check;
mod flow;

/// Name of the program by which kubectl finds it.
pub(crate) const PLUGIN: &str = "kubectl-foreshore";

/// Which cluster, and what to do.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    cluster: Cluster,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster.
#[derive(clap::Args)]
struct Cluster {
    /// Context of the kubeconfig; its current one where it is left out.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of the plant. Where it is left out, a command is sent to an asset in that of the context, and
    /// everything else is of all namespaces.
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Namespace of the operator.
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "FORESHORE_OPERATOR_NAMESPACE",
        default_value = "foreshore-system"
    )]
    operator_namespace: String,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show how everything stands: what is wrong, why, and what to do.
    Status(status::Form),
    /// Send a command to an asset, as [NAMESPACE/]ASSET.
    Invoke(invoke::Action),
    /// Show where messages are: every hop of them through the brokers, with times and outcome.
    Trace(trace::Wanted),
    /// Prove an installation, or that a cluster is ready for one.
    Check(check::Options),
    /// Collect what a support case needs, without Secrets.
    SupportBundle(bundle::Options),
}

/// Does it.
pub(crate) async fn run(options: Options) -> Result<()> {
    foreshore_tls::install_provider();
    let Options { cluster, command } = options;
    let access = Access::of_user(cluster.context, cluster.operator_namespace).await?;
    match command {
        Command::Status(form) => show(&access, form.is_text()).await,
        Command::Invoke(action) => {
            let namespace = cluster.namespace.unwrap_or_else(|| access.namespace().to_owned());
            command_to(&access, action, &namespace).await
        }
        Command::Trace(wanted) => trace_of(&access, wanted, cluster.namespace.as_deref()).await,
        Command::Check(options) => check::run(&access, options, cluster.namespace.as_deref()).await,
        Command::SupportBundle(options) => bundle::run(&access, options).await,
    }
}

/// Prints the status that the leader knows, and the ledgers of all brokers.
async fn show(access: &Access, text: bool) -> Result<()> {
    let (mut status, ledger) = tokio::join!(status(access, text), ledger(access));
    if let Ok(Value::Object(members)) = &mut status
        && let Ok(ledger) = &ledger
    {
        members.insert("ledger".to_owned(), json!(ledger));
    }
    match status? {
        Value::String(text) => print!("{text}"),
        status => println!("{status:#}"),
    }
    match ledger {
        Ok(ledger) if text => print!("{}", LedgerText(&ledger)),
        Ok(_) => {}
        Err(error) => eprintln!("ledger: {error:#}"),
    }
    Ok(())
}

/// What the leader knows.
async fn status(access: &Access, text: bool) -> Result<Value> {
    let leader = access.leader().await?;
    ask(access, &leader, &Request::Status { text }).await
}

/// The ledgers of all brokers.
async fn ledger(access: &Access) -> Result<Vec<PathLedger>> {
    ledger_of(access, None).await
}

/// The ledgers of the brokers of a namespace, or of all.
async fn ledger_of(access: &Access, namespace: Option<&str>) -> Result<Vec<PathLedger>> {
    let brokers = access.role_pods("broker", namespace).await?;
    let asked = brokers.iter().map(async |broker| {
        let answer = ask(access, broker, &Request::Ledger).await?;
        let ledger: Vec<PathLedger> = serde_json::from_value(answer)?;
        anyhow::Ok(ledger)
    });
    let mut paths = Vec::new();
    for ledger in join_all(asked).await {
        paths.extend(ledger?);
    }
    paths.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(paths)
}

/// Sends a command through a cloud endpoint of the asset's namespace.
async fn command_to(access: &Access, action: invoke::Action, namespace: &str) -> Result<()> {
    let user = access.user().await.ok();
    let invocation = action.request(Some(namespace), user)?;
    let clouds = access.role_pods("cloud", Some(&invocation.namespace)).await?;
    let cloud = clouds.first().with_context(|| {
        format!(
            "namespace {} has no cloud endpoint that is ready: declare a Cloud, or publish the command over MQTT",
            invocation.namespace
        )
    })?;
    let answer = ask(access, cloud, &Request::Invoke(Box::new(invocation))).await?;
    println!("{answer:#}");
    Ok(())
}

/// Asks all brokers of a namespace, or of all, and prints what each of them answers.
async fn trace_of(access: &Access, wanted: trace::Wanted, namespace: Option<&str>) -> Result<()> {
    let brokers = access.role_pods("broker", namespace).await?;
    ensure!(!brokers.is_empty(), "there is no broker that is ready");
    let about = wanted.about()?;
    let broker = None;
    let request = Request::Broker(Box::new(BrokerRequest { broker, about }));
    let asked = brokers.iter().map(|pod| ask(access, pod, &request));
    let mut failed = None;
    for (pod, answer) in brokers.iter().zip(join_all(asked).await) {
        eprintln!("{pod}:");
        match answer {
            Ok(answer) => wanted.show(&answer),
            // What the others know is not held back for it.
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn ask(access: &Access, pod: &PodName, request: &Request) -> Result<Value> {
    let stream = access.admin(pod).await.with_context(|| pod.to_string())?;
    admin::ask(stream, request).await.with_context(|| pod.to_string())
}
