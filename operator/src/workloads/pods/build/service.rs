//! Where a workload is reached, and by whom.

use std::{collections::BTreeMap, str::FromStr};

use foreshore_crds::v1alpha1::broker::ServiceType;
use foreshore_tls::Role;
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        networking::v1::{
            NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{Builder, COMPONENT, object_name, short};
use crate::workloads::{Port, ports};

/// Who may reach a port, as NetworkPolicies have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peers(Vec<NetworkPolicyPeer>);

impl FromStr for Peers {
    type Err = serde_json::Error;

    /// Reads a list in JSON.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text).map(Self)
    }
}

impl Builder<'_> {
    /// One Service for the installation's own, and one for each port that has to be reached in another way.
    pub(super) fn services(&self) -> Vec<Service> {
        if !self.is_dialled() {
            return Vec::new();
        }
        let mut all = self.own_ports();
        all.extend(
            self.shape()
                .ports
                .iter()
                .map(|port| (port_name(port), port.number)),
        );
        let all = all.iter().map(|(name, number)| service_port(name, *number, None));
        let main = self.service(object_name(self.role()), "ClusterIP", all.collect());
        let declared = self.shape().ports.iter().filter_map(|port| self.declared(port));
        [main].into_iter().chain(declared).collect()
    }

    /// The Service that a manifest asks for.
    fn declared(&self, port: &Port) -> Option<Service> {
        let declared = port.service.as_ref()?;
        let type_ = match declared.type_.unwrap_or_default() {
            ServiceType::ClusterIp => "ClusterIP",
            ServiceType::NodePort => "NodePort",
            ServiceType::LoadBalancer => "LoadBalancer",
        };
        let name = short(format!("{}-{}", object_name(self.role()), label(port)));
        let node_port = declared.node_port.map(i32::from);
        let mut service = self.service(
            name,
            type_,
            vec![service_port(&port_name(port), port.number, node_port)],
        );
        let annotations: BTreeMap<_, _> = declared
            .annotations
            .iter()
            .map(|(key, value)| (key.clone(), value.to_string()))
            .collect();
        service.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        if let Some(spec) = &mut service.spec {
            spec.load_balancer_class = declared.load_balancer_class.as_ref().map(ToString::to_string);
        }
        Some(service)
    }

    fn service(&self, name: String, type_: &str, ports: Vec<ServicePort>) -> Service {
        Service {
            metadata: self.metadata(name),
            spec: Some(ServiceSpec {
                type_: Some(type_.to_owned()),
                selector: Some(self.selector_labels()),
                ports: Some(ports),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    /// Ports for roles.
    fn own_ports(&self) -> Vec<(String, u16)> {
        match self.role().role {
            Role::Broker => vec![
                ("role-mqtt".to_owned(), ports::MQTT),
                ("role-queues".to_owned(), ports::QUEUE),
            ],
            _ => Vec::new(),
        }
    }

    /// Lets in what has to come in: roles of ours to ports for roles, everybody to what a manifest opens, and whoever
    /// collects metrics.
    pub(super) fn network_policy(&self) -> NetworkPolicy {
        let port = |number: u16| NetworkPolicyPort {
            port: Some(IntOrString::Int(number.into())),
            ..NetworkPolicyPort::default()
        };
        let mut rules = Vec::new();
        // Without peers a rule would let in everybody. Probes come from the node, which every plugin lets in.
        if !self.settings.metrics_from.0.is_empty() {
            rules.push(NetworkPolicyIngressRule {
                ports: Some(vec![port(ports::HTTP)]),
                from: Some(self.settings.metrics_from.0.clone()),
            });
        }
        let own: Vec<_> = self
            .own_ports()
            .into_iter()
            .map(|(_, number)| port(number))
            .collect();
        if !own.is_empty() {
            let components = [Role::Connector, Role::Dataflow].map(|role| role.to_string());
            let roles = components.map(|component| NetworkPolicyPeer {
                pod_selector: Some(LabelSelector {
                    match_labels: Some(BTreeMap::from([(COMPONENT.to_owned(), component)])),
                    ..LabelSelector::default()
                }),
                ..NetworkPolicyPeer::default()
            });
            rules.push(NetworkPolicyIngressRule {
                ports: Some(own),
                from: Some(roles.into()),
            });
        }
        let declared: Vec<_> = self
            .shape()
            .ports
            .iter()
            .map(|declared| port(declared.number))
            .collect();
        if !declared.is_empty() {
            rules.push(NetworkPolicyIngressRule {
                ports: Some(declared),
                from: None,
            });
        }
        NetworkPolicy {
            metadata: ObjectMeta {
                ..self.metadata(object_name(self.role()))
            },
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(self.selector()),
                policy_types: Some(vec!["Ingress".to_owned()]),
                ingress: Some(rules),
                egress: None,
            }),
        }
    }
}

/// Names of ports are short, and listeners have long ones.
fn port_name(port: &Port) -> String {
    format!("tcp-{}", port.number)
}

fn service_port(name: &str, number: u16, node_port: Option<i32>) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number.into(),
        target_port: Some(IntOrString::Int(number.into())),
        node_port,
        ..ServicePort::default()
    }
}

/// A port's name as part of a DNS label; with its number where letters had to change, so that names stay different.
fn label(port: &Port) -> String {
    let characters = port.name.chars().map(|character| match character {
        'a'..='z' | '0'..='9' | '-' => character,
        'A'..='Z' => character.to_ascii_lowercase(),
        _ => '-',
    });
    let label: String = characters.collect();
    if label == port.name {
        return label;
    }
    format!("{}-{}", label.trim_matches('-'), port.number)
}
