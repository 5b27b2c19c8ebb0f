//! A plant that is made to be looked at and removed: it proves that pods run, find each other and keep what they must.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube_client::{
    Api,
    api::{DeleteParams, DynamicObject, PostParams},
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Access, Error, within};
use crate::{
    kubernetes::{MANAGER, resource},
    object::Kind,
    source::directory::{EmbeddedFile, yaml},
};

/// Longest that the removal of a namespace is watched.
const REMOVAL: Duration = Duration::from_secs(180);

/// A plant on trial.
pub struct Trial {
    access: Access,
    namespace: String,
}

impl Access {
    /// Makes a namespace of its own and what the files declare for namespace `written_for`, in it.
    ///
    /// # Errors
    /// [`Error`]; what was made by then is removed.
    pub async fn try_out(&self, files: &[EmbeddedFile], written_for: &str) -> Result<Trial, Error> {
        let suffix = uuid::Uuid::new_v4().simple().to_string();
        let namespace = format!("foreshore-check-{}", suffix.get(..8).unwrap_or_default());
        let api: Api<Namespace> = Api::all(self.client.clone());
        let made = Namespace {
            metadata: ObjectMeta {
                name: Some(namespace.clone()),
                labels: Some(
                    [
                        ("app.kubernetes.io/managed-by", "foreshore-check"),
                        ("pod-security.kubernetes.io/enforce", "restricted"),
                    ]
                    .map(|(label, value)| (label.to_owned(), value.to_owned()))
                    .into(),
                ),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        within(api.create(&PostParams::default(), &made)).await?;
        let trial = Trial {
            access: self.clone(),
            namespace,
        };
        for file in files {
            let text = moved(&file.text, written_for, &trial.namespace);
            if let Err(error) = trial.declare(&file.name, &text).await {
                drop(trial.remove().await);
                return Err(error);
            }
        }
        Ok(trial)
    }
}

/// A manifest that was written for one namespace, for another: it and its topics name it.
fn moved(text: &str, from: &str, to: &str) -> String {
    text.replace(&format!("namespace: {from}\n"), &format!("namespace: {to}\n"))
        .replace(&format!("/{from}/"), &format!("/{to}/"))
}

impl Trial {
    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    async fn declare(&self, file: &str, text: &str) -> Result<(), Error> {
        let unusable = |problem: String| Error::Unusable {
            what: file.to_owned(),
            problem,
        };
        let documents = yaml::parse(text).map_err(|fault| unusable(fault.message))?;
        for document in documents {
            let kind = document.value.get("kind").and_then(Value::as_str);
            let kind = kind.and_then(Kind::from_name);
            let kind = kind.ok_or_else(|| unusable("it declares an unknown kind".to_owned()))?;
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.access.client.clone(), &self.namespace, &resource(kind));
            let object =
                serde_json::from_value(document.value).map_err(|error| unusable(error.to_string()))?;
            let parameters = PostParams {
                field_manager: Some(format!("{MANAGER}-check")),
                ..PostParams::default()
            };
            within(api.create(&parameters, &object)).await?;
        }
        Ok(())
    }

    /// Removes it with everything in it, and waits until it is gone.
    ///
    /// # Errors
    /// [`Error`]; [`Error::TimedOut`] when it is not gone after 180 s.
    pub async fn remove(self) -> Result<(), Error> {
        let api: Api<Namespace> = Api::all(self.access.client.clone());
        within(api.delete(&self.namespace, &DeleteParams::default())).await?;
        let end = Instant::now() + REMOVAL;
        while within(api.get_opt(&self.namespace)).await?.is_some() {
            if Instant::now() > end {
                return Err(Error::TimedOut);
            }
            sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_namespace_is_another_one() {
        let text = "metadata:\n  namespace: plant\naddress: nsu=urn:plant-line\ntopic: data/plant/#\n";
        assert_eq!(
            moved(text, "plant", "trial"),
            "metadata:\n  namespace: trial\naddress: nsu=urn:plant-line\ntopic: data/trial/#\n"
        );
    }
}
