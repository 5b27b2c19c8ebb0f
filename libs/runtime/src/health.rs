//! Which components work, and why others do not.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use serde::Serialize;

/// The components of a process and how they are. Cheap to clone; clones share the components.
#[derive(Clone, Debug, Default)]
pub struct HealthRegistry {
    components: Arc<Mutex<BTreeMap<String, Component>>>,
}

/// How one component is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// Whether it does its work.
    pub ok: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a process is: the body of `/healthz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Whether all components are.
    pub ok: bool,
    /// Components by name.
    pub components: BTreeMap<String, Component>,
}

/// Says how one component is; the component is forgotten when this is dropped.
#[derive(Debug)]
pub struct HealthHandle {
    name: String,
    registry: HealthRegistry,
}

impl HealthRegistry {
    /// A registry without components, which is healthy.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component, which fails with the reason `starting` until told otherwise. A component of the same name is
    /// replaced.
    pub fn component(&self, name: impl Into<String>) -> HealthHandle {
        let handle = HealthHandle {
            name: name.into(),
            registry: self.clone(),
        };
        handle.failed("starting");
        handle
    }

    /// How the process is now.
    #[must_use]
    pub fn health(&self) -> Health {
        let components = self.components.lock().clone();
        Health {
            ok: components.values().all(|component| component.ok),
            components,
        }
    }
}

impl HealthHandle {
    /// The component does its work.
    pub fn ok(&self) {
        self.set(Component {
            ok: true,
            reason: None,
        });
    }

    /// The component does not do its work, for a reason that a human understands.
    pub fn failed(&self, reason: impl Into<String>) {
        self.set(Component {
            ok: false,
            reason: Some(reason.into()),
        });
    }

    fn set(&self, component: Component) {
        self.registry
            .components
            .lock()
            .insert(self.name.clone(), component);
    }
}

impl Drop for HealthHandle {
    fn drop(&mut self) {
        self.registry.components.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_component_fails_the_process_and_says_why() {
        let registry = HealthRegistry::new();
        assert!(registry.health().ok);
        let store = registry.component("store");
        let control = registry.component("control");
        assert!(!registry.health().ok);
        store.ok();
        control.ok();
        assert!(registry.health().ok);
        control.failed("operator is unreachable");
        let json = serde_json::to_value(registry.health()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "ok": false, "components": {
                "store": { "ok": true },
                "control": { "ok": false, "reason": "operator is unreachable" },
            }})
        );
        drop(control);
        assert!(registry.health().ok);
    }
}
