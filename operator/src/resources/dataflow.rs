//! `Dataflow`: a task of its namespace's runner, and a durable queue at the broker for each sink. Where the source is
//! another broker, that one keeps the queues.

use std::collections::BTreeMap;

use foreshore_control::plan::{DataflowPlan, PathOverflow, PathPlan};
use foreshore_crds::{
    conditions::reasons,
    refs::LocalRef,
    v1alpha1::{
        DataflowSpec,
        broker::OverflowPolicy,
        dataflow::{MqttSink, Sink, Source as SourceSpec},
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
    source: Source,
    /// Endpoint of each sink.
    endpoints: Vec<Name>,
}

/// Where the messages of a Dataflow come from.
enum Source {
    Broker(Queues),
    Endpoint(Name),
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
    let source = match &version.spec.source.endpoint_ref {
        None => queues(&version, scope, &mut faults).map(Source::Broker),
        Some(reference) => {
            let topics = topics(&version.spec.source, &mut faults);
            let endpoint = source_endpoint(reference, &version.name.namespace, scope, &mut faults);
            endpoint.filter(|_| topics.is_some())
        }
    };
    faults.check()?;
    match (source, endpoints.into_iter().collect()) {
        (Some(source), Some(endpoints)) => Ok(ValidDataflow {
            version,
            source,
            endpoints,
        }),
        _ => Err(Vec::new()),
    }
}

/// Finds the endpoint that a Dataflow takes from, which is another broker.
fn source_endpoint(
    reference: &LocalRef,
    namespace: &str,
    scope: &Scope<'_>,
    faults: &mut Faults,
) -> Option<Source> {
    let field = "spec.source.endpointRef";
    let name = faults.take(scope.find(Kind::DataflowEndpoint, namespace, reference, field))?;
    if let Some(endpoint) = scope.valid.endpoints.get(&name) {
        let spec = &endpoint.version.spec;
        if endpoint.speaks != EndpointType::Mqtt {
            let message = "only messages of another MQTT broker can be taken";
            let problem = Problem::new(reasons::PROTOCOL_MISMATCH, message).field(field);
            faults.add(problem.found(endpoint.speaks.as_str()).allowed("mqtt"));
        } else if spec.mqtt.as_ref().is_some_and(|mqtt| mqtt.broker_ref.is_some()) {
            let message =
                "the endpoint is a Broker of this namespace, which keeps queues for dataflows itself";
            let problem = Problem::new(reasons::INVALID, message).field(field);
            faults.add(problem.found(name.name.as_str()).allowed("source.brokerRef"));
        }
    }
    Some(Source::Endpoint(name))
}

/// Finds the broker that keeps the queues of a Dataflow; none where its source is an endpoint.
pub(crate) fn queues(
    version: &Version<DataflowSpec>,
    scope: &Scope<'_>,
    faults: &mut Faults,
) -> Option<Queues> {
    let source = &version.spec.source;
    if source.endpoint_ref.is_some() {
        return None;
    }
    let reference = source.broker_ref.as_ref();
    let namespace = &version.name.namespace;
    let field = "spec.source.brokerRef";
    let broker = faults.take(scope.find_or_only(Kind::Broker, namespace, reference, field, |_, _| true));
    let topics = topics(source, faults);
    broker.zip(topics).map(|(broker, topics)| Queues {
        version: version.clone(),
        broker,
        topics,
    })
}

/// The topic filters of a source; none when one of them is not valid.
fn topics(source: &SourceSpec, faults: &mut Faults) -> Option<Vec<TopicFilter>> {
    let mut topics = Vec::with_capacity(source.topics.len());
    for (index, topic) in source.topics.iter().enumerate() {
        let field = format!("spec.source.topics[{index}]");
        match TopicFilter::new(topic) {
            Ok(filter) if filter.as_str().starts_with("$share/") => {
                let message = "each sink of a dataflow has a queue of its own, which it shares with nobody";
                faults.add(
                    Problem::new(reasons::INVALID, message)
                        .field(field)
                        .found(topic.as_str())
                        .allowed("a topic filter without $share/group/"),
                );
            }
            Ok(filter) => topics.push(filter),
            Err(error) => {
                faults.add(
                    Problem::new(reasons::INVALID, error.to_string())
                        .field(field)
                        .found(topic.as_str()),
                );
            }
        }
    }
    (topics.len() == source.topics.len()).then_some(topics)
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
                path: path(&version.name, sink),
                topics: topics.clone(),
                max_bytes: Some(buffer.effective_max_bytes()),
                max_age_seconds: Some(buffer.effective_max_age().as_secs()),
                overflow: overflow(buffer.effective_overflow()),
                reader: DATAFLOW_RUNNER.to_owned(),
            };
            planner.add(&broker::role(broker), &object, &path);
        }
    }
}

fn path(Name { namespace, name }: &Name, sink: &Sink) -> String {
    PathPlan::name(namespace, name, &sink.name)
}

impl ValidDataflow {
    /// Every endpoint that it takes from or delivers to.
    pub(crate) fn all_endpoints(&self) -> impl Iterator<Item = &Name> {
        let source = match &self.source {
            Source::Broker(_) => None,
            Source::Endpoint(name) => Some(name),
        };
        self.endpoints.iter().chain(source)
    }

    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self {
            version,
            source,
            endpoints,
        } = self;
        if let Source::Broker(queues) = source {
            queues.plan(planner);
        }
        let (role, object) = (role(&version.name.namespace), version.name.key(Kind::Dataflow));
        if !version.spec.effective_enabled() {
            planner.disabled(
                &object,
                match source {
                    Source::Broker(_) => {
                        "switched off by enabled: false; its queues go on filling within their bounds"
                    }
                    Source::Endpoint(_) => {
                        "switched off by enabled: false; the other broker goes on filling its session by its own rules"
                    }
                },
            );
            return;
        }
        planner.role(&role, &object);
        let valid = planner.valid;
        let connected = match source {
            Source::Broker(queues) => broker::connect(planner, &role, &object, &queues.broker),
            Source::Endpoint(name) => valid
                .endpoints
                .get(name)
                .is_some_and(|endpoint| endpoint.plan_for(planner, &role, &object)),
        };
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
                .map(|sink| (sink.name.to_string(), path(&version.name, sink)))
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
