//! `Dataflow`: a task of its namespace's runner, and a durable queue at the broker for each sink.

use std::collections::BTreeMap;

use foreshore_control::plan::{DataflowPlan, PathOverflow, PathPlan};
use foreshore_crds::{
    conditions::reasons,
    v1alpha1::{
        DataflowSpec,
        broker::OverflowPolicy,
        dataflow::{MqttSink, Sink},
        dataflow_endpoint::EndpointType,
    },
};
use foreshore_record::{TopicFilter, topic::fill_template};
use foreshore_tls::Role;

use crate::{
    object::Kind,
    plan::Planner,
    problem::Problem,
    role::{DATAFLOW_RUNNER, RoleName},
};

use super::{Faults, Name, Scope, Version, asset::topic_problem, broker};

/// Most levels of a topic that a placeholder can name.
const MAX_TOPIC_PLACEHOLDER: usize = 32;

/// A Dataflow that can run.
pub(crate) struct ValidDataflow {
    pub(crate) version: Version<DataflowSpec>,
    queues: Queues,
    /// Endpoint of each sink.
    pub(crate) endpoints: Vec<Name>,
}

/// The durable queues of a Dataflow, which outlive everything else of it: as long as it is declared they are kept,
/// whether it can run or not.
pub(crate) struct Queues {
    version: Version<DataflowSpec>,
    broker: Name,
    topics: Vec<TopicFilter>,
}

fn dereference(version: &Version<DataflowSpec>, scope: &Scope<'_>) -> (Vec<Option<Name>>, Faults) {
    let mut faults = Faults::default();
    let namespace = version.name.namespace.as_str();
    let find = |(index, sink): (usize, &Sink)| {
        let field = format!("spec.sinks[{index}].endpointRef");
        scope.find(Kind::DataflowEndpoint, namespace, &sink.endpoint_ref, &field)
    };
    let endpoints = version
        .spec
        .sinks
        .iter()
        .enumerate()
        .map(|sink| faults.take(find(sink)))
        .collect();
    (endpoints, faults)
}

pub(crate) fn validate(
    version: Version<DataflowSpec>,
    scope: &mut Scope<'_>,
) -> Result<ValidDataflow, Vec<Problem>> {
    let (endpoints, mut faults) = dereference(&version, scope);
    for (index, (sink, name)) in version.spec.sinks.iter().zip(&endpoints).enumerate() {
        let endpoint = name.as_ref().and_then(|name| scope.valid.endpoints.get(name));
        if let Some(endpoint) = endpoint {
            check_sink(
                sink,
                endpoint.speaks,
                &format!("spec.sinks[{index}]"),
                &mut faults,
            );
        }
    }
    let queues = queues(&version, scope, &mut faults);
    faults.check()?;
    match (queues, endpoints.into_iter().collect()) {
        (Some(queues), Some(endpoints)) => Ok(ValidDataflow {
            version,
            queues,
            endpoints,
        }),
        _ => Err(Vec::new()),
    }
}

/// Finds the broker that keeps the queues of a Dataflow.
pub(crate) fn queues(
    version: &Version<DataflowSpec>,
    scope: &Scope<'_>,
    faults: &mut Faults,
) -> Option<Queues> {
    let source = &version.spec.source;
    let reference = source.broker_ref.as_ref();
    let namespace = &version.name.namespace;
    let field = "spec.source.brokerRef";
    let broker = faults.take(scope.find_or_only(Kind::Broker, namespace, reference, field, |_, _| true));
    let mut topics = Vec::with_capacity(source.topics.len());
    for (index, topic) in source.topics.iter().enumerate() {
        match TopicFilter::new(topic) {
            Ok(filter) => topics.push(filter),
            Err(error) => {
                let field = format!("spec.source.topics[{index}]");
                faults.add(
                    Problem::new(reasons::INVALID, error.to_string())
                        .field(field)
                        .found(topic.as_str()),
                );
            }
        }
    }
    let complete = topics.len() == source.topics.len();
    broker.filter(|_| complete).map(|broker| Queues {
        version: version.clone(),
        broker,
        topics,
    })
}

/// Whether a sink's own block is that of its endpoint.
fn check_sink(sink: &Sink, speaks: EndpointType, field: &str, faults: &mut Faults) {
    let Sink {
        name: _,
        endpoint_ref: _,
        inputs: _,
        lane: _,
        buffer: _,
        delivery: _,
        mqtt,
        file,
        kafka,
        http,
        postgresql,
        object_store,
    } = sink;
    let blocks = [
        (EndpointType::Mqtt, mqtt.is_some()),
        (EndpointType::File, file.is_some()),
        (EndpointType::Kafka, kafka.is_some()),
        (EndpointType::Http, http.is_some()),
        (EndpointType::Postgresql, postgresql.is_some()),
        (EndpointType::ObjectStore, object_store.is_some()),
    ];
    for (block, _) in blocks
        .iter()
        .filter(|(block, present)| *present && *block != speaks)
    {
        let message = "a block of another system than the endpoint's";
        let problem =
            Problem::new(reasons::PROTOCOL_MISMATCH, message).field(format!("{field}.{}", block.as_str()));
        faults.add(problem.found(block.as_str()).allowed(speaks.as_str()));
    }
    let needs_block = matches!(speaks, EndpointType::Kafka | EndpointType::Postgresql);
    if needs_block && !blocks.contains(&(speaks, true)) {
        let message = format!(
            "an endpoint of {} wants the sink to say where in it",
            speaks.as_str()
        );
        faults.add(
            Problem::new(reasons::INVALID, message)
                .field(field)
                .allowed(format!("{}: …", speaks.as_str())),
        );
    }
    if let Some(MqttSink {
        topic: Some(template),
        qos: _,
        retain: _,
    }) = mqtt
    {
        let levels: Vec<_> = (1..=MAX_TOPIC_PLACEHOLDER)
            .map(|level| format!("topic.{level}"))
            .collect();
        let variables: Vec<_> = std::iter::once("topic")
            .chain(levels.iter().map(String::as_str))
            .map(|name| (name, "x"))
            .collect();
        if let Err(error) = fill_template(template, &variables) {
            let problem = topic_problem(&error, template, &format!("{field}.mqtt.topic"));
            let unknown = matches!(error, foreshore_record::topic::InvalidTemplate::Variable { .. });
            faults.add(if unknown {
                problem.allowed("{topic}, {topic.1}, {topic.2}, …")
            } else {
                problem
            });
        }
    }
}

/// The runner that carries the dataflows of a namespace.
pub(crate) fn role(namespace: &str) -> RoleName {
    RoleName::new(Role::Dataflow, namespace, DATAFLOW_RUNNER)
}

impl Queues {
    /// Plans the queues alone.
    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self {
            version,
            broker,
            topics,
        } = self;
        let object = version.name.key(Kind::Dataflow);
        for sink in &version.spec.sinks {
            let buffer = version.spec.buffer_of(sink);
            let path = PathPlan {
                namespace: version.name.namespace.clone(),
                path: self.path(sink),
                topics: topics.clone(),
                max_bytes: Some(buffer.effective_max_bytes()),
                max_age_seconds: Some(buffer.effective_max_age().as_secs()),
                overflow: overflow(buffer.effective_overflow()),
                reader: DATAFLOW_RUNNER.to_owned(),
            };
            planner.add(&broker::role(broker), &object, &path);
        }
    }

    fn path(&self, sink: &Sink) -> String {
        let Name { namespace, name } = &self.version.name;
        PathPlan::name(namespace, name, &sink.name)
    }
}

impl ValidDataflow {
    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self {
            version,
            queues,
            endpoints,
        } = self;
        queues.plan(planner);
        let (role, object) = (role(&version.name.namespace), version.name.key(Kind::Dataflow));
        if !version.spec.effective_enabled() {
            planner.disabled(
                &object,
                "switched off by enabled: false; its queues go on filling within their bounds",
            );
            return;
        }
        planner.role(&role, &object);
        let connected = broker::connect(planner, &role, &object, &queues.broker);
        let valid = planner.valid;
        // Each endpoint is planned, that one which waits hides no other.
        let mut reachable = true;
        for endpoint in endpoints.iter().filter_map(|name| valid.endpoints.get(name)) {
            reachable &= endpoint.plan_for(planner, &role, &object);
        }
        if connected && reachable {
            let paths: BTreeMap<_, _> = version
                .spec
                .sinks
                .iter()
                .map(|sink| (sink.name.to_string(), queues.path(sink)))
                .collect();
            let plan = DataflowPlan {
                object: version.object(),
                spec: (*version.spec).clone(),
                paths,
            };
            planner.add(&role, &object, &plan);
        }
    }
}

fn overflow(policy: OverflowPolicy) -> PathOverflow {
    match policy {
        OverflowPolicy::Reject => PathOverflow::Reject,
        OverflowPolicy::DropOldest => PathOverflow::DropOldest,
        OverflowPolicy::DropNew => PathOverflow::DropNew,
    }
}
