//! Expressions of dataflows. The API server takes them for text; we know what they may say.

use foreshore_expr::{Environment, Expected};

use super::{FieldPath, Problem, ProblemKind, Resource, problem::cut};
use crate::{
    types::Expression,
    v1alpha1::dataflow::{DataflowSpec, MapField, Sink, Stage},
};

/// Judges every expression of an object.
pub(super) fn judge(resource: &Resource) -> Vec<Problem> {
    let Resource::Dataflow(dataflow) = resource else {
        return Vec::new();
    };
    let DataflowSpec { stages, sinks, .. } = &dataflow.spec;
    let mut checker = Checker {
        environment: Environment::record(),
        problems: Vec::new(),
    };
    let spec = FieldPath::root().field("spec");
    for (index, stage) in stages.iter().enumerate() {
        checker.stage(stage, &spec.field("stages").index(index));
    }
    for (index, sink) in sinks.iter().enumerate() {
        checker.sink(sink, &spec.field("sinks").index(index));
    }
    checker.problems
}

struct Checker {
    environment: Environment,
    problems: Vec<Problem>,
}

impl Checker {
    fn stage(&mut self, stage: &Stage, path: &FieldPath) {
        if let Some(filter) = &stage.filter {
            self.check(
                &filter.expression,
                &path.field("filter").field("expression"),
                Expected::Bool,
            );
        }
        if let Some(map) = &stage.map {
            let path = path.field("map");
            self.fields(&map.fields, &path.field("fields"));
            if let Some(topic) = &map.topic {
                self.check(topic, &path.field("topic"), Expected::String);
            }
        }
        if let Some(route) = &stage.route {
            let path = path.field("route").field("routes");
            for (index, branch) in route.routes.iter().enumerate() {
                self.check(
                    &branch.expression,
                    &path.index(index).field("expression"),
                    Expected::Bool,
                );
            }
        }
    }

    fn sink(&mut self, sink: &Sink, path: &FieldPath) {
        if let Some(key) = sink.kafka.as_ref().and_then(|kafka| kafka.key.as_ref()) {
            self.check(key, &path.field("kafka").field("key"), Expected::String);
        }
        if let Some(postgresql) = &sink.postgresql {
            self.fields(&postgresql.columns, &path.field("postgresql").field("columns"));
        }
    }

    fn fields(&mut self, fields: &[MapField], path: &FieldPath) {
        for (index, field) in fields.iter().enumerate() {
            self.check(
                &field.expression,
                &path.index(index).field("expression"),
                Expected::Any,
            );
        }
    }

    fn check(&mut self, expression: &Expression, path: &FieldPath, expected: Expected) {
        if let Err(error) = foreshore_expr::check(expression, &self.environment, expected) {
            self.problems.push(Problem::new(
                path.clone(),
                ProblemKind::Expression,
                format!(
                    "{} at {} of the expression: {}",
                    error.message,
                    error.position,
                    cut(&error.found)
                ),
                error.allowed,
            ));
        }
    }
}
