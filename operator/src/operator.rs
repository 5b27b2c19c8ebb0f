//! The operator: a source in, plans to roles, workloads and statuses out.

mod driver;
mod epoch;
mod placement;
mod rotation;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use foreshore_runtime::{Shutdown, Task, TaskError, spawn};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use crate::{
    accepted::Accepted,
    control::{self, ControlPlane},
    facts::Facts,
    kubernetes::Revisions,
    platform::Platform,
    problem::Problem,
    reconcile::{Outcome, Reconciler},
    source::{self, ResourceSource, Snapshot},
    status::{
        StatusTable,
        writer::{PACE, StatusSink, StatusUpdates},
    },
    vault,
    workloads::Workloads,
};
use driver::Driver;

/// Requests for the status that wait.
const REQUESTS: usize = 16;

/// What an operator is made of.
pub struct Options {
    /// Where objects are declared.
    pub source: Box<dyn ResourceSource>,
    /// What runs roles.
    pub workloads: Arc<dyn Workloads>,
    /// The control server, bound.
    pub control: ControlPlane,
    /// What can be done here.
    pub platform: Platform,
    /// How it begins.
    pub begin: Begin,
    /// Where statuses are written, besides the table that [`Handle::status`] gives.
    pub status: Option<Arc<dyn StatusSink>>,
}

/// How an operator begins.
pub enum Begin {
    /// With what was accepted before, kept in this folder. A start with nothing accepted before, and something wrong,
    /// is refused: whoever starts it looks on.
    From(PathBuf),
    /// As the leader of an epoch, with whatever is right; nobody looks on.
    Lead {
        /// The epoch.
        epoch: u64,
        /// What ran on when somebody else led.
        earlier: Revisions,
    },
}

/// Why an operator can't start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source can't begin.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// Something is wrong, and nothing was accepted before that could run instead.
    #[error("{}", rejection(problems))]
    Rejected {
        /// Everything that is wrong.
        problems: Vec<Problem>,
    },
    /// The control server can't run.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// What is kept over restarts can't be opened.
    #[error("state of the operator: {0}")]
    State(#[from] vault::Error),
    /// A task of the operator ended by itself.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The end was asked for before the operator had started.
    #[error("ended before it had started")]
    Ended,
}

fn rejection(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    format!(
        "nothing was accepted before, and the manifests are not right:\n{}",
        lines.join("\n")
    )
}

/// An operator.
pub struct Operator;

/// A running operator. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<oneshot::Sender<StatusTable>>,
    shutdown: Shutdown,
    ended: watch::Receiver<Option<Arc<Result<(), Error>>>>,
}

impl Handle {
    /// How everything stands; `None` after the operator has ended.
    pub async fn status(&self) -> Option<StatusTable> {
        let (answer, table) = oneshot::channel();
        self.requests.send(answer).await.ok()?;
        table.await.ok()
    }

    /// Begins the end: roles are ended in the order of the data's way, each within its time.
    pub fn shutdown(&self, drain: Duration) {
        self.shutdown.begin(drain);
    }

    /// Resolves when the operator and all its workloads have ended, with why.
    pub async fn ended(&self) -> Arc<Result<(), Error>> {
        let mut ended = self.ended.clone();
        let result = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|result| result.clone());
        result.unwrap_or_else(|| Arc::new(Err(Error::Ended)))
    }
}

impl Operator {
    /// Starts an operator: reads the source, judges it, and starts what shall run.
    ///
    /// # Errors
    /// [`Error::Rejected`] when something is wrong and nothing was accepted before; else nothing that is wrong with
    /// manifests stops it. Other errors are of the surroundings.
    pub async fn start(options: Options, shutdown: Shutdown) -> Result<Handle, Error> {
        let Options {
            source,
            workloads,
            control,
            platform,
            begin,
            status,
        } = options;
        let (accepted, epoch, looked_on) = match begin {
            Begin::From(folder) => (Accepted::open(&folder)?, epoch::next(&folder)?, true),
            Begin::Lead { epoch, earlier } => (earlier.accepted(), epoch, false),
        };
        let nothing_accepted = accepted.is_empty() && looked_on;
        let source_shutdown = shutdown.child();
        let (sender, mut snapshots) = watch::channel(None);
        let mut source = spawn("source", source.run(sender, source_shutdown.clone()));

        let snapshot = first(&mut snapshots, &mut source, &shutdown).await?;
        let reconciler = Reconciler::new(platform, accepted);
        // A start that is refused accepts nothing, or the next one would find something accepted.
        let starts = move |outcome: &Outcome| !nothing_accepted || outcome.all_problems().next().is_none();
        let (reconciler, outcome) =
            driver::pass(reconciler, Arc::clone(&snapshot), Facts::default(), starts).await?;
        let problems: Vec<_> = outcome.all_problems().cloned().collect();
        if nothing_accepted && !problems.is_empty() {
            source_shutdown.begin(Duration::ZERO);
            return Err(Error::Rejected { problems });
        }
        driver::log_problems(problems.iter());

        let (handle, events, authority, serving) = control.split(shutdown.child());
        let serving = spawn("control server", serving);
        handle.lead(epoch);
        info!(
            epoch,
            objects = outcome.verdicts.len(),
            problems = problems.len(),
            "operator leads"
        );
        let mut present = BTreeMap::new();
        let updates = status.map(|sink| {
            let updates = StatusUpdates::default();
            present = sink.present();
            spawn(
                "status writer",
                updates.clone().write_to(sink, PACE, shutdown.child()),
            )
            .detach();
            updates
        });
        let (requests, incoming) = mpsc::channel(REQUESTS);
        let driver = Driver::new(driver::Parts {
            reconciler,
            snapshot,
            snapshots,
            workloads,
            control: handle,
            events,
            authority,
            requests: incoming,
            updates,
            present,
        });
        let (done, ended) = watch::channel(None);
        let tasks = run(driver, outcome, source, serving, shutdown.clone());
        spawn("operator", async move {
            let result = tasks.await;
            done.send_replace(Some(Arc::new(result)));
        })
        .detach();
        Ok(Handle {
            requests,
            shutdown,
            ended,
        })
    }
}

/// Waits for the first snapshot of a source.
async fn first(
    snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>,
    source: &mut Task<Result<(), source::Error>>,
    shutdown: &Shutdown,
) -> Result<Arc<Snapshot>, Error> {
    let told = async {
        match snapshots.wait_for(Option::is_some).await {
            Ok(snapshot) => snapshot.clone(),
            Err(_) => None,
        }
    };
    tokio::select! {
        biased;
        () = shutdown.begun() => Err(Error::Ended),
        snapshot = told => match snapshot {
            Some(snapshot) => Ok(snapshot),
            // The sender is gone: the source has ended, and says why.
            None => Err(source.await?.err().map_or(Error::Ended, Error::Source)),
        },
    }
}

/// Runs until the shutdown begins or a part fails, and ends the workloads.
async fn run(
    driver: Driver,
    outcome: Outcome,
    source: Task<Result<(), source::Error>>,
    serving: Task<Result<(), control::Error>>,
    shutdown: Shutdown,
) -> Result<(), Error> {
    let workloads = driver.workloads();
    let mut serving = serving;
    let mut serves = true;
    let result = tokio::select! {
        driven = driver.run(outcome, shutdown.clone()) => driven,
        read = source => read.map_err(Error::Task).and_then(|read| Ok(read?)),
        // The end of everything may reach it before the driver.
        served = &mut serving => {
            serves = false;
            served.map_err(Error::Task).and_then(|served| Ok(served?))
        }
    };
    workloads.end().await;
    shutdown.begin(Duration::ZERO);
    if serves {
        drop(shutdown.or_deadline(serving).await);
    }
    result
}
