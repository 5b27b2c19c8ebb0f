//! The custom resource definitions, generated from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
    JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::{Map, Value};

use crate::v1alpha1::{
    Asset, Broker, BrokerPolicy, Cloud, Connector, Dataflow, DataflowEndpoint, Device, Simulator,
};

/// Largest manifest of a definition in bytes: client-side `kubectl apply` copies it into an annotation, which
/// ends at 256 KiB.
pub const MAX_MANIFEST: usize = 200_000;

/// Why the definitions could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The derived definition does not survive its way through JSON.
    #[error("definition of {kind} can't be written")]
    Json {
        /// Kind of the definition.
        kind: String,
        /// What the serializer says.
        source: serde_json::Error,
    },
    /// A definition can't be written as YAML.
    #[error("manifest of {kind} can't be written")]
    Yaml {
        /// Kind of the definition.
        kind: String,
        /// What the serializer says.
        source: serde_yaml::Error,
    },
}

/// The definition of one kind, as it is installed.
///
/// It differs from what is derived in three ways: the columns and labels that all kinds share are added; `nullable`
/// is taken away, so that an explicit null means the same as leaving a field out; and number formats are those that
/// the API server knows, which warns about others each time.
///
/// # Errors
/// [`Error::Json`], never seen with the types of this crate (a test goes through all of them).
pub fn crd<K: CustomResourceExt>() -> Result<CustomResourceDefinition, Error> {
    let mut crd = K::crd();
    for version in &mut crd.spec.versions {
        let own = version.additional_printer_columns.take().unwrap_or_default();
        version.additional_printer_columns = Some(columns(own));
        if let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
        {
            *schema = mend(schema).map_err(|source| Error::Json {
                kind: crd.spec.names.kind.clone(),
                source,
            })?;
        }
    }
    let labels = crd.metadata.labels.get_or_insert_default();
    labels.insert("app.kubernetes.io/name".to_owned(), "foreshore".to_owned());
    labels.insert("app.kubernetes.io/part-of".to_owned(), "foreshore".to_owned());
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert(
        "argocd.argoproj.io/sync-options".to_owned(),
        "ServerSideApply=true".to_owned(),
    );
    Ok(crd)
}

/// The definitions of all kinds, in the order in which a reader meets them.
///
/// # Errors
/// As [`crd`].
pub fn all_crds() -> Result<Vec<CustomResourceDefinition>, Error> {
    Ok(vec![
        crd::<Device>()?,
        crd::<Asset>()?,
        crd::<Connector>()?,
        crd::<Broker>()?,
        crd::<BrokerPolicy>()?,
        crd::<Dataflow>()?,
        crd::<DataflowEndpoint>()?,
        crd::<Simulator>()?,
        crd::<Cloud>()?,
    ])
}

/// The manifests of all definitions: file name and YAML, as they lie in `crds/manifests/`.
///
/// # Errors
/// As [`crd`], and [`Error::Yaml`].
pub fn manifests() -> Result<Vec<(String, String)>, Error> {
    all_crds()?
        .into_iter()
        .map(|crd| {
            let yaml = serde_yaml::to_string(&crd).map_err(|source| Error::Yaml {
                kind: crd.spec.names.kind.clone(),
                source,
            })?;
            let file = format!("{}.yaml", crd.spec.names.plural);
            Ok((
                file,
                format!("# Generated from crds/src by `cargo xtask generate`. Do not edit.\n{yaml}"),
            ))
        })
        .collect()
}

/// The page of all rules, as it lies in `docs/errors/rules.md`.
///
/// # Errors
/// As [`crd`].
pub fn rules_page() -> Result<String, Error> {
    let mut page = String::from(
        "# Rules\n\n<!-- Generated from crds/src by `cargo xtask generate`. Do not edit. -->\n\n\
         Beside types and bounds, which `kubectl explain` tells, objects keep these rules. `foreshore check` and the API \
         server judge them alike; `…` stands for what was found. An example of each, rejected, lies in \
         `crds/examples/rejected`.\n",
    );
    for crd in all_crds()? {
        page.push_str(&format!(
            "\n## {}\n\n| field | message | rule |\n|---|---|---|\n",
            crd.spec.names.kind
        ));
        for version in &crd.spec.versions {
            let schema = version
                .schema
                .as_ref()
                .and_then(|schema| schema.open_api_v3_schema.as_ref());
            if let Some(schema) = schema {
                list_rules("", schema, &mut page);
            }
        }
    }
    Ok(page)
}

fn list_rules(place: &str, schema: &JSONSchemaProps, page: &mut String) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        let place = format!("{place}{}", rule.field_path.as_deref().unwrap_or_default());
        let field = place.trim_start_matches('.');
        let field = if field.is_empty() { "metadata.name" } else { field };
        // What a message expression works out lies between its first and its last text.
        let worked_out = rule
            .message_expression
            .as_deref()
            .and_then(|text| text.rsplit_once("', allowed "))
            .map(|(_, allowed)| format!("found …, allowed {}", allowed.trim_end_matches('\'')));
        let message = rule.message.clone().or(worked_out).unwrap_or_default();
        let cell = |text: &str| text.replace('|', "\\|");
        page.push_str(&format!(
            "| `{field}` | {} | `{}` |\n",
            cell(&message),
            cell(&rule.rule)
        ));
    }
    for (name, child) in schema.properties.iter().flatten() {
        list_rules(&format!("{place}.{name}"), child, page);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(child)) = &schema.items {
        list_rules(&format!("{place}[]"), child, page);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(child)) = &schema.additional_properties {
        list_rules(&format!("{place}.*"), child, page);
    }
}

fn columns(own: Vec<CustomResourceColumnDefinition>) -> Vec<CustomResourceColumnDefinition> {
    let column = |name: &str, type_: &str, json_path: &str| CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: type_.to_owned(),
        json_path: json_path.to_owned(),
        ..CustomResourceColumnDefinition::default()
    };
    let condition =
        |type_: &str, member: &str| format!(".status.conditions[?(@.type==\"{type_}\")].{member}");
    let mut columns = vec![
        column("Ready", "string", &condition("Ready", "status")),
        column("Healthy", "string", &condition("Healthy", "status")),
        column("Reason", "string", &condition("Ready", "reason")),
    ];
    columns.extend(own);
    columns.push(column("Age", "date", ".metadata.creationTimestamp"));
    columns
}

fn mend(schema: &JSONSchemaProps) -> Result<JSONSchemaProps, serde_json::Error> {
    let mut value = serde_json::to_value(schema)?;
    mend_node(&mut value);
    serde_json::from_value(value)
}

fn mend_node(node: &mut Value) {
    let Some(node) = node.as_object_mut() else { return };
    node.remove("nullable");
    let format = match node.get("format").and_then(Value::as_str) {
        Some("uint8" | "uint16" | "uint32" | "int8" | "int16") => Some("int32"),
        Some("uint64" | "uint") => Some("int64"),
        _ => None,
    };
    if let Some(format) = format {
        node.insert("format".to_owned(), format.into());
    }
    for key in ["items", "additionalProperties", "not"] {
        if let Some(child) = node.get_mut(key) {
            mend_node(child);
        }
    }
    for child in node
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(Map::values_mut)
    {
        mend_node(child);
    }
}

#[cfg(test)]
mod tests;
