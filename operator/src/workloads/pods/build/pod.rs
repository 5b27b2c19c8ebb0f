//! The pod of a workload: one container, as restricted as Kubernetes knows.

use std::collections::BTreeMap;

use foreshore_crds::v1alpha1::common::{
    ImagePullPolicy, LogLevel, Pod, ResourceList, TaintEffect, TolerationOperator,
};
use foreshore_tls::Role;
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapProjection, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
        EnvVarSource, HTTPGetAction, LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec,
        PodTemplateSpec, Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile,
        SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection, Toleration,
        TopologySpreadConstraint, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{Builder, TRUST, TRUST_KEY, object_name};
use crate::workloads::{Task, pods::AUDIENCE, ports};

/// Volume of everything that is kept.
pub(super) const DATA: &str = "data";
const DATA_PATH: &str = "/var/lib/foreshore";
const IDENTITY: &str = "identity";
const IDENTITY_PATH: &str = "/var/run/foreshore";
const TOKEN: &str = "token";
const ENCRYPTION: &str = "encryption-keys";
/// Not below [`IDENTITY_PATH`]: nothing can be mounted into a volume that is read only.
const ENCRYPTION_PATH: &str = "/var/run/foreshore-encryption";

/// User and group of every pod: that of the image.
const USER: i64 = 65_532;
/// Life of the token that a role enrolls with, in seconds; the kubelet renews it.
const TOKEN_SECONDS: i64 = 3600;
/// How long a role may take to end in order, in seconds.
const GRACE_SECONDS: i64 = 30;
/// A pod without a volume leaves a lost node after so many seconds.
const LOST_NODE_SECONDS: i64 = 10;

impl Builder<'_> {
    pub(super) fn pod(&self) -> PodTemplateSpec {
        let pod = self.shape().pod.clone().unwrap_or_default();
        let mut labels: BTreeMap<_, _> = texts(&pod.labels);
        labels.extend(self.labels());
        let spec = PodSpec {
            automount_service_account_token: Some(false),
            containers: vec![self.container(&pod)],
            enable_service_links: Some(false),
            image_pull_secrets: self.image_pull_secrets(&pod),
            node_selector: some(texts(&pod.node_selector)),
            priority_class_name: pod.priority_class_name.as_ref().map(ToString::to_string),
            security_context: Some(PodSecurityContext {
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                run_as_group: Some(USER),
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            service_account_name: Some(object_name(self.role())),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            tolerations: some(self.tolerations(&pod)),
            topology_spread_constraints: self.spread(),
            volumes: Some(self.volumes()),
            ..PodSpec::default()
        };
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels),
                annotations: some(texts(&pod.annotations)),
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
        }
    }

    fn container(&self, pod: &Pod) -> Container {
        let probe = |path: &str, period: i32, failures: i32| Probe {
            http_get: Some(HTTPGetAction {
                path: Some(path.to_owned()),
                port: IntOrString::String("metrics".to_owned()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(period),
            timeout_seconds: Some(5),
            failure_threshold: Some(failures),
            ..Probe::default()
        };
        let policy = pod.image_pull_policy.map(|policy| {
            match policy {
                ImagePullPolicy::Always => "Always",
                ImagePullPolicy::IfNotPresent => "IfNotPresent",
                ImagePullPolicy::Never => "Never",
            }
            .to_owned()
        });
        let keys = self.shape().encryption_keys.as_ref();
        let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
            name: name.to_owned(),
            mount_path: path.to_owned(),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        };
        Container {
            name: "foreshore".to_owned(),
            image: Some(
                pod.image
                    .as_ref()
                    .map_or_else(|| self.settings.image.clone(), ToString::to_string),
            ),
            image_pull_policy: policy.or_else(|| self.settings.image_pull_policy.clone()),
            args: Some(self.arguments()),
            env: Some(self.environment()),
            ports: Some(vec![ContainerPort {
                name: Some("metrics".to_owned()),
                container_port: ports::HTTP.into(),
                ..ContainerPort::default()
            }]),
            // Restarting does not help against a machine that is switched off, so only a process that hangs counts.
            liveness_probe: Some(probe("/livez", 10, 6)),
            readiness_probe: Some(probe("/healthz", 2, 2)),
            resources: Some(resources(pod)),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities {
                    add: None,
                    drop: Some(vec!["ALL".to_owned()]),
                }),
                read_only_root_filesystem: Some(true),
                ..SecurityContext::default()
            }),
            // The last lines of the log are the evidence in the status.
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(
                [
                    mount(DATA, DATA_PATH, false),
                    mount(IDENTITY, IDENTITY_PATH, true),
                ]
                .into_iter()
                .chain(keys.map(|_| mount(ENCRYPTION, ENCRYPTION_PATH, true)))
                .collect(),
            ),
            ..Container::default()
        }
    }

    fn arguments(&self) -> Vec<String> {
        let arguments = match &self.workload.task {
            Task::Broker => vec!["broker"],
            Task::Connector(task) => vec!["connector", task.protocol.as_str()],
            Task::Dataflow => vec!["dataflow"],
            Task::Simulator => vec!["simulator"],
            Task::Cloud => vec!["cloud"],
        };
        arguments.into_iter().map(ToOwned::to_owned).collect()
    }

    fn environment(&self) -> Vec<EnvVar> {
        let role = self.role();
        let mut variables = vec![
            ("FORESHORE_CONTROL", self.settings.control.clone()),
            ("FORESHORE_DATA", DATA_PATH.to_owned()),
            ("FORESHORE_LOG_FORMAT", self.settings.log_format.clone()),
            ("FORESHORE_ROLE_NAME", format!("{}/{}", role.namespace, role.name)),
            ("FORESHORE_TOKEN_FILE", format!("{IDENTITY_PATH}/{TOKEN}")),
            ("FORESHORE_TRUST_FILE", format!("{IDENTITY_PATH}/{TRUST_KEY}")),
        ];
        if self.shape().encryption_keys.is_some() {
            variables.push(("FORESHORE_ENCRYPTION_KEYS", ENCRYPTION_PATH.to_owned()));
        }
        if self.is_dialled() {
            variables.push((
                "FORESHORE_HOST",
                format!("{}.{}.svc", object_name(role), role.namespace),
            ));
        }
        if let Some(level) = self.shape().log_level {
            let level = match level {
                LogLevel::Error => "error",
                LogLevel::Warn => "warn",
                LogLevel::Info => "info",
                LogLevel::Debug => "debug",
                LogLevel::Trace => "trace",
            };
            variables.push(("FORESHORE_LOG", level.to_owned()));
        }
        let variables = variables.into_iter().map(|(name, value)| EnvVar {
            name: name.to_owned(),
            value: Some(value),
            value_from: None,
        });
        // What a volume holds may be the identity of the pod before.
        let uid = EnvVar {
            name: "FORESHORE_POD_UID".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".to_owned()),
                    field_path: "metadata.uid".to_owned(),
                }),
                ..EnvVarSource::default()
            }),
        };
        variables.chain([uid]).collect()
    }

    fn volumes(&self) -> Vec<Volume> {
        let token = VolumeProjection {
            service_account_token: Some(ServiceAccountTokenProjection {
                audience: Some(AUDIENCE.to_owned()),
                expiration_seconds: Some(TOKEN_SECONDS),
                path: TOKEN.to_owned(),
            }),
            ..VolumeProjection::default()
        };
        let trust = VolumeProjection {
            config_map: Some(ConfigMapProjection {
                name: TRUST.to_owned(),
                ..ConfigMapProjection::default()
            }),
            ..VolumeProjection::default()
        };
        let mut volumes = vec![Volume {
            name: IDENTITY.to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![token, trust]),
                default_mode: Some(0o440),
            }),
            ..Volume::default()
        }];
        if self.shape().volume.is_none() {
            // In memory, since its plan holds what Secrets hold.
            volumes.push(Volume {
                name: DATA.to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    medium: Some("Memory".to_owned()),
                    size_limit: Some(Quantity("64Mi".to_owned())),
                }),
                ..Volume::default()
            });
        }
        let keys = self.shape().encryption_keys.as_ref();
        volumes.extend(keys.map(|name| Volume {
            name: ENCRYPTION.to_owned(),
            // In memory of the node, as every Secret; the whole of it, so that the kubelet exchanges all files at once.
            secret: Some(SecretVolumeSource {
                secret_name: Some(name.clone()),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        }));
        volumes
    }

    fn image_pull_secrets(&self, pod: &Pod) -> Option<Vec<LocalObjectReference>> {
        let own = pod
            .image_pull_secrets
            .iter()
            .map(|secret| secret.name.to_string());
        let secrets = own.chain(self.settings.image_pull_secrets.iter().cloned());
        some(secrets.map(|name| LocalObjectReference { name }).collect())
    }

    fn tolerations(&self, pod: &Pod) -> Vec<Toleration> {
        let declared = pod.tolerations.iter().map(|toleration| Toleration {
            key: toleration.key.as_ref().map(ToString::to_string),
            operator: toleration.operator.map(|operator| {
                match operator {
                    TolerationOperator::Exists => "Exists",
                    TolerationOperator::Equal => "Equal",
                }
                .to_owned()
            }),
            value: toleration.value.as_ref().map(ToString::to_string),
            effect: toleration.effect.map(|effect| {
                match effect {
                    TaintEffect::NoSchedule => "NoSchedule",
                    TaintEffect::PreferNoSchedule => "PreferNoSchedule",
                    TaintEffect::NoExecute => "NoExecute",
                }
                .to_owned()
            }),
            toleration_seconds: toleration.toleration_seconds,
        });
        let mut tolerations: Vec<_> = declared.collect();
        // What keeps nothing moves soon; a volume can't, so there is no hurry to leave it.
        if self.shape().volume.is_none() {
            let lost = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
            let is_declared = |key: &str| {
                let mut keys = pod.tolerations.iter().map(|toleration| toleration.key.as_ref());
                keys.any(|declared| declared.is_none_or(|declared| declared.as_str() == key))
            };
            let lost = lost.into_iter().filter(|key| !is_declared(key));
            tolerations.extend(lost.map(|key| Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                value: None,
                effect: Some("NoExecute".to_owned()),
                toleration_seconds: Some(LOST_NODE_SECONDS),
            }));
        }
        tolerations
    }

    /// Several pods of a workload go to different nodes where they can.
    fn spread(&self) -> Option<Vec<TopologySpreadConstraint>> {
        (self.shape().replicas > 1).then(|| {
            vec![TopologySpreadConstraint {
                label_selector: Some(self.selector()),
                max_skew: 1,
                topology_key: "kubernetes.io/hostname".to_owned(),
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                ..TopologySpreadConstraint::default()
            }]
        })
    }

    /// Whether others dial this role.
    pub(super) fn is_dialled(&self) -> bool {
        matches!(self.role().role, Role::Broker | Role::Simulator | Role::Cloud)
    }
}

fn some<T: IntoIterator + Default + PartialEq>(items: T) -> Option<T> {
    (items != T::default()).then_some(items)
}

fn texts<V: ToString>(items: &BTreeMap<String, V>) -> BTreeMap<String, String> {
    items
        .iter()
        .map(|(key, value)| (key.clone(), value.to_string()))
        .collect()
}

/// What the manifest says, over requests that fit the smallest plant.
fn resources(pod: &Pod) -> ResourceRequirements {
    let declared = pod.resources.clone().unwrap_or_default();
    let mut requests = BTreeMap::from([
        ("cpu".to_owned(), Quantity("20m".to_owned())),
        ("memory".to_owned(), Quantity("32Mi".to_owned())),
    ]);
    requests.extend(declared.requests.map(amounts).unwrap_or_default());
    ResourceRequirements {
        requests: Some(requests),
        limits: declared.limits.map(amounts).filter(|limits| !limits.is_empty()),
        claims: None,
    }
}

fn amounts(list: ResourceList) -> BTreeMap<String, Quantity> {
    let ResourceList {
        cpu,
        memory,
        ephemeral_storage,
    } = list;
    let amounts = [
        ("cpu", cpu),
        ("memory", memory),
        ("ephemeral-storage", ephemeral_storage),
    ];
    amounts
        .into_iter()
        .filter_map(|(name, amount)| Some((name.to_owned(), Quantity(amount?.to_string()))))
        .collect()
}
