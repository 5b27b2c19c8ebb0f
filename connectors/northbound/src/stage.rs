//! Stages: what is done to a record on its way to one sink.
//!
//! A dataflow is a graph; a sink reads its own queue, so for each sink only the stages that lead to it are compiled and
//! run. A record goes through them depth first: a filter and a route look at the record as it is, decoded once; a map
//! makes a new one. What reaches the sink are the outputs, usually one. When none does, the record is dropped for a
//! reason that names why; when an expression fails, the record is a dead letter of that stage, whatever other ways it
//! may have gone.

mod map;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use foreshore_crds::v1alpha1::dataflow::{
    DataflowSpec, Route as RouteSpec, SOURCE, Sink as SinkSpec, Stage as StageSpec,
};
use foreshore_expr::{Environment, Expected, ExprError, Meter, Program, RecordView};
use foreshore_record::{DropReason, Record};

use self::map::Map;

/// No route of a route stage took it, and there is no `otherwise`.
pub const UNROUTED: &str = "unrouted";

/// Most outputs that the stages may make of one record.
pub const MAX_OUTPUTS: usize = 64;

/// Most stages that one record may go through, each way counted: a graph can double the ways at every stage.
const MAX_VISITS: usize = 1024;

/// Why stages can't be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// An expression is not accepted.
    #[error("{place}: {error}")]
    Expression {
        /// Stage and field.
        place: String,
        /// What is wrong.
        error: ExprError,
    },
    /// Something that the manifest's own rules exclude.
    #[error("{place}: found {found}, allowed: {allowed}")]
    Structure {
        /// Stage and field.
        place: String,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// What the stages made of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Processed {
    /// What is to be delivered; never empty.
    Outputs(Vec<Arc<Record>>),
    /// Nothing is.
    Dropped(DropReason),
    /// A stage failed.
    Failed {
        /// Its name.
        stage: String,
        /// Why.
        reason: String,
    },
}

/// The stages that lead to one sink, compiled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stages {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stages: Vec<Stage>,
    from_source: Vec<Target>,
}

/// Where a record goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Stage(usize),
    Sink,
}

#[derive(Debug)]
struct Stage {
    name: String,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Filter {
        condition: Program,
        to: Vec<Target>,
    },
    Map {
        map: Map,
        to: Vec<Target>,
    },
    Route {
        branches: Vec<(Program, Vec<Target>)>,
        otherwise: Option<Vec<Target>>,
    },
}

// === compiling ===

impl Stages {
    /// Compiles the stages that lead to a sink.
    ///
    /// # Errors
    /// Names the stage and the field. A manifest that was judged gives none.
    pub fn compile(spec: &DataflowSpec, sink: &SinkSpec) -> Result<Self, StageError> {
        let graph = Graph::new(spec, sink);
        let mut stages = Vec::new();
        for (index, stage) in spec.stages.iter().enumerate() {
            if graph.leads_to_sink(index) {
                stages.push(Stage {
                    name: stage.name.to_string(),
                    action: graph.compile(stage)?,
                });
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                stages,
                from_source: graph.consumers(SOURCE),
            }),
        })
    }
}

/// Who takes what from whom, seen from one sink.
struct Graph<'s> {
    inputs: Vec<(&'s str, Vec<&'s str>)>,
    sink_inputs: Vec<&'s str>,
    /// Stages that lead to the sink, in order of the manifest, which is an order from the source.
    kept: Vec<usize>,
}

impl<'s> Graph<'s> {
    fn new(spec: &'s DataflowSpec, sink: &'s SinkSpec) -> Self {
        let inputs: Vec<_> = spec
            .stages
            .iter()
            .enumerate()
            .map(|(at, stage)| (&*stage.name, spec.inputs_of_stage(at)))
            .collect();
        let sink_inputs = spec.inputs_of_sink(sink);
        let mut kept = Vec::new();
        // Only stages further up may be named, so that those below are judged before.
        for (at, (name, _)) in inputs.iter().enumerate().rev() {
            let takes = |from: &[&str]| from.iter().any(|input| stage_of(input) == *name);
            let below = kept.iter().filter_map(|kept: &usize| inputs.get(*kept));
            if takes(&sink_inputs) || below.into_iter().any(|(_, from)| takes(from)) {
                kept.push(at);
            }
        }
        kept.reverse();
        Self {
            inputs,
            sink_inputs,
            kept,
        }
    }

    fn leads_to_sink(&self, stage: usize) -> bool {
        self.kept.contains(&stage)
    }

    /// Who takes what comes out of `output`: `source`, `STAGE` or `STAGE.ROUTE`.
    fn consumers(&self, output: &str) -> Vec<Target> {
        let stages = self.kept.iter().enumerate().filter(|(_, at)| {
            self.inputs
                .get(**at)
                .is_some_and(|(_, from)| from.contains(&output))
        });
        let stages = stages.map(|(position, _)| Target::Stage(position));
        let sink = self
            .sink_inputs
            .iter()
            .filter(|input| **input == output)
            .map(|_| Target::Sink);
        stages.chain(sink.take(1)).collect()
    }

    fn compile(&self, stage: &StageSpec) -> Result<Action, StageError> {
        let name = stage.name.as_str();
        match (&stage.filter, &stage.map, &stage.route) {
            (Some(filter), None, None) => Ok(Action::Filter {
                condition: expression(name, "filter.expression", &filter.expression, Expected::Bool)?,
                to: self.consumers(name),
            }),
            (None, Some(map), None) => Ok(Action::Map {
                map: Map::compile(name, map)?,
                to: self.consumers(name),
            }),
            (None, None, Some(route)) => self.route(name, route),
            _ => Err(StageError::Structure {
                place: format!("stage {name:?}"),
                found: "none or several of filter, map and route".to_owned(),
                allowed: "exactly one of them",
            }),
        }
    }

    fn route(&self, name: &str, route: &RouteSpec) -> Result<Action, StageError> {
        let to = |branch: &str| self.consumers(&format!("{name}.{branch}"));
        let branches = route.routes.iter().map(|branch| {
            let field = format!("route.routes[{}].expression", branch.name);
            Ok((
                expression(name, &field, &branch.expression, Expected::Bool)?,
                to(&branch.name),
            ))
        });
        Ok(Action::Route {
            branches: branches.collect::<Result<_, _>>()?,
            otherwise: route.otherwise.as_deref().map(to),
        })
    }
}

/// The stage that an input names.
fn stage_of(input: &str) -> &str {
    input.split_once('.').map_or(input, |(stage, _)| stage)
}

fn expression(stage: &str, field: &str, source: &str, expected: Expected) -> Result<Program, StageError> {
    foreshore_expr::check(source, &Environment::record(), expected).map_err(|error| StageError::Expression {
        place: format!("stage {stage:?}, {field}"),
        error,
    })
}

// === running ===

/// A record on its way.
struct Walk<'i> {
    inner: &'i Inner,
    /// The budget of expressions is the record's.
    meter: Meter,
    visits: usize,
    outputs: Vec<Arc<Record>>,
    dropped: Drops,
}

/// Why no output came out of ways that the record took.
#[derive(Clone, Copy, Debug, Default)]
struct Drops {
    filtered: bool,
    unrouted: bool,
}

/// A stage that failed.
struct Failure {
    stage: String,
    reason: String,
}

impl Stages {
    /// Takes a record through the stages.
    #[must_use]
    pub fn process(&self, record: &Arc<Record>) -> Processed {
        let mut walk = Walk {
            inner: &self.inner,
            meter: Meter::default(),
            visits: 0,
            outputs: Vec::new(),
            dropped: Drops::default(),
        };
        let view = RecordView::new(record);
        match walk.go(&self.inner.from_source, record, &view) {
            Err(Failure { stage, reason }) => Processed::Failed { stage, reason },
            Ok(()) if !walk.outputs.is_empty() => Processed::Outputs(walk.outputs),
            Ok(()) => Processed::Dropped(walk.dropped.reason()),
        }
    }
}

impl Drops {
    /// A filter's rejection tells most, a way to another sink least.
    fn reason(self) -> DropReason {
        if self.filtered {
            DropReason::FILTERED
        } else if self.unrouted {
            DropReason::other(UNROUTED)
        } else {
            DropReason::ROUTED_ELSEWHERE
        }
    }
}

impl Walk<'_> {
    fn go(&mut self, to: &[Target], record: &Arc<Record>, view: &RecordView<'_>) -> Result<(), Failure> {
        for target in to {
            match target {
                Target::Stage(stage) => self.visit(*stage, record, view)?,
                Target::Sink if self.outputs.len() < MAX_OUTPUTS => self.outputs.push(Arc::clone(record)),
                Target::Sink => {
                    let reason = format!("stages make more than {MAX_OUTPUTS} outputs of it");
                    return Err(Failure {
                        stage: "sink".to_owned(),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    fn visit(&mut self, stage: usize, record: &Arc<Record>, view: &RecordView<'_>) -> Result<(), Failure> {
        let Some(stage) = self.inner.stages.get(stage) else {
            return Ok(());
        };
        let failure = |reason: String| Failure {
            stage: stage.name.clone(),
            reason,
        };
        self.visits += 1;
        if self.visits > MAX_VISITS {
            return Err(failure(format!(
                "record goes through more than {MAX_VISITS} stages"
            )));
        }
        match &stage.action {
            Action::Filter { condition, to } => {
                let holds = condition.evaluate_bool(view, &mut self.meter);
                if holds.map_err(|error| failure(error.to_string()))? {
                    return self.go(to, record, view);
                }
                self.dropped.filtered = true;
                Ok(())
            }
            Action::Map { map, to } => {
                let mapped = map
                    .apply(view, &mut self.meter)
                    .map_err(|error| failure(error.to_string()))?;
                let mapped = Arc::new(mapped);
                self.go(to, &mapped, &RecordView::new(&mapped))
            }
            Action::Route { branches, otherwise } => {
                for (condition, to) in branches {
                    let holds = condition.evaluate_bool(view, &mut self.meter);
                    if holds.map_err(|error| failure(error.to_string()))? {
                        return self.go(to, record, view);
                    }
                }
                match otherwise {
                    Some(to) => self.go(to, record, view),
                    None => {
                        self.dropped.unrouted = true;
                        Ok(())
                    }
                }
            }
        }
    }
}
