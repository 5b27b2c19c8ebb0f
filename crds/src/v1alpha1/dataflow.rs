//! `Dataflow`: from a broker through stages to sinks.

use std::time::Duration as StdDuration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    broker::OverflowPolicy,
    common::{Backoff, QoS},
};
use crate::{
    refs::LocalRef,
    rules,
    types::{
        ByteSize, Duration, Expression, InputName, ItemName, PointName, RelativePath, Text, TopicFilter,
        TopicTemplate, effective,
    },
};

/// Messages from the broker, through stages, to sinks. Without `inputs` the stages are a line: each takes what the
/// one before it gives, the first what the source gives, every sink what the last stage gives.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "Dataflow",
    plural = "dataflows",
    namespaced,
    validation = rules::object_name(),
    status = "DataflowStatus",
    derive = "PartialEq",
    shortname = "fsflow",
    category = "foreshore",
    doc = "Messages from the broker, through stages, to sinks. Without inputs the stages are a line: each takes what the one before it gives, the first what the source gives, every sink what the last stage gives.",
    printcolumn(name = "Sinks", type_ = "integer", json_path = ".status.sinks")
)]
#[x_kube(validation = rules::stage_inputs_are_above(), validation = rules::sink_inputs_exist(), validation = rules::stages_after_route_name_inputs(), validation = rules::sinks_after_route_name_inputs(), validation = rules::queue_of_its_own("buffer"), validation = rules::queue_of_its_own("deadLetter"), validation = rules::sinks_queue_of_its_own())]
#[serde(rename_all = "camelCase")]
pub struct DataflowSpec {
    /// Whether it runs; true where it is left out. Switched off, its queues go on filling within their bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Where messages come from.
    pub source: Source,
    /// What is done to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub stages: Vec<Stage>,
    /// Where they go. Each sink has a durable queue of its own, so that a slow one stops no other.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub sinks: Vec<Sink>,
    /// Bounds of each sink's queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<Buffer>,
    /// How messages are handed to each sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// What becomes of messages that can't be processed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetter>,
}

effective!(DataflowSpec {
    /// Whether it runs:
    effective_enabled: enabled -> bool = true;
});

/// What `inputs` calls the source.
pub const SOURCE: &str = "source";

impl DataflowSpec {
    /// Bounds of `sink`'s queue: its own members, then the dataflow's.
    #[must_use]
    pub fn buffer_of(&self, sink: &Sink) -> Buffer {
        let own = sink.buffer.clone().unwrap_or_default();
        let outer = self.buffer.clone().unwrap_or_default();
        Buffer {
            max_bytes: own.max_bytes.or(outer.max_bytes),
            max_age: own.max_age.or(outer.max_age),
            overflow: own.overflow.or(outer.overflow),
        }
    }

    /// How messages are handed to `sink`: its own members, then the dataflow's.
    #[must_use]
    pub fn delivery_of(&self, sink: &Sink) -> Delivery {
        let own = sink.delivery.clone().unwrap_or_default();
        let outer = self.delivery.clone().unwrap_or_default();
        Delivery {
            batch: own.batch.or(outer.batch),
            max_attempts: own.max_attempts.or(outer.max_attempts),
            max_inflight: own.max_inflight.or(outer.max_inflight),
            timeout: own.timeout.or(outer.timeout),
            backoff: own.backoff.or(outer.backoff),
        }
    }

    /// What the stage at `index` takes: as stated, else the stage before it, else the source.
    #[must_use]
    pub fn inputs_of_stage(&self, index: usize) -> Vec<&str> {
        match self.stages.get(index) {
            Some(stage) if !stage.inputs.is_empty() => stage.inputs.iter().map(AsRef::as_ref).collect(),
            _ => vec![self.last_of(index)],
        }
    }

    /// What `sink` takes: as stated, else the last stage, else the source.
    #[must_use]
    pub fn inputs_of_sink<'a>(&'a self, sink: &'a Sink) -> Vec<&'a str> {
        if sink.inputs.is_empty() {
            vec![self.last_of(self.stages.len())]
        } else {
            sink.inputs.iter().map(AsRef::as_ref).collect()
        }
    }

    fn last_of(&self, stages: usize) -> &str {
        stages
            .checked_sub(1)
            .and_then(|last| self.stages.get(last))
            .map_or(SOURCE, |stage| stage.name.as_str())
    }
}

/// Where messages come from: a Broker of the namespace, or an endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_most_one_of(&["brokerRef", "endpointRef"]))]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Broker; may be left out where the namespace has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_ref: Option<LocalRef>,
    /// An MQTT endpoint with an address: another broker. It keeps a session for each sink, which is the sink's queue: a
    /// message is acknowledged there when the sink has acknowledged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_ref: Option<LocalRef>,
    /// Topic filters; a message that matches several comes once, from an endpoint as often as the broker there sends it.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub topics: Vec<TopicFilter>,
}

/// Something done to messages. Exactly one of `filter`, `map` and `route`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["filter", "map", "route"]))]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Name, unique in the dataflow; not `source`.
    #[x_kube(validation = rules::plain("self != 'source'", "source", "another name: source is what the source is called"))]
    pub name: ItemName,
    /// Stages that it takes messages from: `STAGE`, `STAGE.ROUTE` or `source`; the stage before it where it is left
    /// out. Only stages further up may be named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub inputs: Vec<InputName>,
    /// Passes on what an expression is true for, and drops the rest as `dropped{filtered}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Makes a new payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Map>,
    /// Sends messages different ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
}

/// Passes on what an expression is true for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// An expression that gives a bool.
    pub expression: Expression,
}

/// Makes a new payload.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_least_one_of(&["passthrough", "fields", "topic"]), validation = rules::only_where("remove", "(has(self.passthrough) && self.passthrough)", "with passthrough"))]
#[serde(rename_all = "camelCase")]
pub struct Map {
    /// Begins with the old payload's members; false where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passthrough: Option<bool>,
    /// Members that are left out of what `passthrough` takes over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub remove: Vec<PointName>,
    /// Members of the new payload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["output".into()]))]
    pub fields: Vec<MapField>,
    /// An expression that gives the new topic; the old one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Expression>,
}

effective!(Map {
    /// Whether it begins with the old payload's members:
    effective_passthrough: passthrough -> bool = false;
});

/// A member of a new payload.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MapField {
    /// Name of the member; `a.b` makes an object in an object.
    pub output: PointName,
    /// An expression that gives its value.
    pub expression: Expression,
}

/// Sends messages different ways: to the first route whose expression is true.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::plain("!has(self.otherwise) || self.routes.all(r, r.name != self.otherwise)", "otherwise named as a route", "another name").field_path(".otherwise"))]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The routes, in order.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub routes: Vec<RouteBranch>,
    /// Name of the route for what no expression is true for; where it is left out, that is dropped as
    /// `dropped{unrouted}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<ItemName>,
}

/// A way for messages; other stages name it `STAGE.NAME`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RouteBranch {
    /// Name, unique in the stage.
    pub name: ItemName,
    /// An expression that gives a bool.
    pub expression: Expression,
}

/// How urgent messages are on a link that they share.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Before everything else but commands.
    Alarm,
    /// What happens now; what piled up follows behind it.
    #[default]
    Live,
    /// When there is room.
    Bulk,
}

/// Where messages go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_most_one_of(&["mqtt", "file", "kafka", "http", "postgresql", "objectStore"]))]
#[serde(rename_all = "camelCase")]
pub struct Sink {
    /// Name, unique in the dataflow; part of the path's name in the ledger.
    pub name: ItemName,
    /// Endpoint.
    pub endpoint_ref: LocalRef,
    /// Stages that it takes messages from: `STAGE`, `STAGE.ROUTE` or `source`; the last stage where it is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub inputs: Vec<InputName>,
    /// How urgent its messages are; Live where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<Lane>,
    /// Bounds of its queue; what is left out is the dataflow's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<Buffer>,
    /// How messages are handed over; what is left out is the dataflow's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// For an MQTT endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttSink>,
    /// For a file endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSink>,
    /// For a Kafka endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaSink>,
    /// For an HTTP endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSink>,
    /// For a PostgreSQL endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<PostgresqlSink>,
    /// For an object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStoreSink>,
}

effective!(Sink {
    /// How urgent its messages are:
    effective_lane: lane -> Lane = Lane::Live;
});

/// What a sink on an MQTT endpoint does. Placeholders: `{topic}` and its levels `{topic.1}`, `{topic.2}`, ….
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MqttSink {
    /// Topic; `{topic}` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<TopicTemplate>,
    /// Quality of service; AtLeastOnce where it is left out. AtMostOnce is settled when it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<QoS>,
    /// Whether the other broker keeps the last message; as the message came where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<bool>,
}

effective!(MqttSink {
    /// Quality of service:
    effective_qos: qos -> QoS = QoS::AtLeastOnce;
});

/// What a sink on a file endpoint does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileSink {
    /// Folder below the endpoint's path; `{namespace}/{dataflow}` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RelativePath>,
}

/// What a sink on a Kafka endpoint does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSink {
    /// Topic.
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    pub topic: String,
    /// An expression that gives the key; the MQTT topic where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Expression>,
}

/// What a sink on an HTTP endpoint does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpSink {
    /// Path below the endpoint's address, with the placeholders of an MQTT sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::rule("self.startsWith('/')", "self", "a path that begins with /"))]
    pub path: Option<Text>,
    /// Method; Post where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<HttpMethod>,
}

effective!(HttpSink {
    /// Method:
    effective_method: method -> HttpMethod = HttpMethod::Post;
});

/// A method of HTTP.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpMethod {
    /// POST.
    #[default]
    Post,
    /// PUT.
    Put,
}

/// What a sink on a PostgreSQL endpoint does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PostgresqlSink {
    /// Table, with its schema where it is not on the search path.
    #[schemars(
        length(min = 1, max = 127),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?$")
    )]
    pub table: String,
    /// Columns and the expressions that give them.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["output".into()]))]
    pub columns: Vec<MapField>,
}

/// What a sink on an object store does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStoreSink {
    /// Folder below the endpoint's prefix; `{namespace}/{dataflow}` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RelativePath>,
    /// Format of objects; Parquet where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ObjectFormat>,
}

effective!(ObjectStoreSink {
    /// Format of objects:
    effective_format: format -> ObjectFormat = ObjectFormat::Parquet;
});

/// Format of objects in an object store.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ObjectFormat {
    /// Apache Parquet.
    #[default]
    Parquet,
    /// A JSON value on each line.
    JsonLines,
}

/// Bounds of a sink's durable queue: what an outage may pile up.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Buffer {
    /// Bytes; 10Gi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("64Ki"))]
    pub max_bytes: Option<ByteSize>,
    /// Age, then `dropped{expired}`; 72h where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "99999h"))]
    pub max_age: Option<Duration>,
    /// What a full queue does; DropOldest where it is left out. Reject refuses the publishers themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<OverflowPolicy>,
}

effective!(Buffer {
    /// Bytes:
    effective_max_bytes: max_bytes -> u64 = 10 << 30;
    /// Age:
    effective_max_age: max_age -> StdDuration = StdDuration::from_secs(72 * 3600);
    /// What a full queue does:
    effective_overflow: overflow -> OverflowPolicy = OverflowPolicy::DropOldest;
});

/// How messages are handed to a sink.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// What makes up a batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
    /// Tries before a message that the sink refuses becomes a dead letter; 5 where it is left out. An endpoint that
    /// can't be reached uses up no tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: Option<u32>,
    /// Batches that wait for the sink's acknowledgement; 4 where it is left out, 1 keeps strict order over failures. MQTT
    /// and file endpoints take one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub max_inflight: Option<u32>,
    /// Longest wait for an acknowledgement; 30s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "1h"))]
    pub timeout: Option<Duration>,
    /// Waiting between tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
}

effective!(Delivery {
    /// Tries before a dead letter:
    effective_max_attempts: max_attempts -> u32 = 5;
    /// Batches that wait for an acknowledgement:
    effective_max_inflight: max_inflight -> u32 = 4;
    /// Longest wait for an acknowledgement:
    effective_timeout: timeout -> StdDuration = StdDuration::from_secs(30);
});

/// What makes up a batch: whichever is reached first.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Messages; 1000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_records: Option<u32>,
    /// Bytes; 1Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_between("1Ki", "64Mi"))]
    pub max_bytes: Option<ByteSize>,
    /// Wait for company; 100ms where it is left out, none where the source is an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "10m"))]
    pub max_delay: Option<Duration>,
}

effective!(Batch {
    /// Messages:
    effective_max_records: max_records -> u32 = 1000;
    /// Bytes:
    effective_max_bytes: max_bytes -> u64 = 1 << 20;
    /// Wait for company:
    effective_max_delay: max_delay -> StdDuration = StdDuration::from_millis(100);
});

/// What becomes of messages that can't be processed: they are kept with reason and stage, and can be replayed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Bytes to keep; 256Mi where it is left out. The oldest goes first, as `dropped{overflow}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("64Ki"))]
    pub max_bytes: Option<ByteSize>,
    /// Age to keep; 720h where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "99999h"))]
    pub max_age: Option<Duration>,
}

effective!(DeadLetter {
    /// Bytes to keep:
    effective_max_bytes: max_bytes -> u64 = 256 << 20;
    /// Age to keep:
    effective_max_age: max_age -> StdDuration = StdDuration::from_secs(720 * 3600);
});

/// What is known about a dataflow.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DataflowStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Number of sinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sinks: Option<i32>,
}
