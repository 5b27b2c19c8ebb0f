//! Dependency arrows: which crate may know which (the layers of `docs/adr/0001-layout.md`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell;

/// One layer: its crates may depend on those of layers above it in this list, and on those of their own that the
/// second part names.
struct Layer {
    name: &'static str,
    crates: &'static [&'static str],
    /// Arrows within the layer.
    within: &'static [(&'static str, &'static str)],
}

/// Layers from the purest to the binary.
const LAYERS: &[Layer] = &[
    Layer {
        name: "pure",
        crates: &["foreshore-record", "foreshore-expr", "foreshore-crds"],
        within: &[
            ("foreshore-expr", "foreshore-record"),
            ("foreshore-crds", "foreshore-record"),
            ("foreshore-crds", "foreshore-expr"),
        ],
    },
    Layer {
        name: "libraries",
        crates: &[
            "foreshore-tls",
            "foreshore-runtime",
            "foreshore-store",
            "foreshore-mqtt",
            "foreshore-control",
            "foreshore-edgelink",
        ],
        within: &[
            ("foreshore-mqtt", "foreshore-tls"),
            ("foreshore-mqtt", "foreshore-runtime"),
            ("foreshore-control", "foreshore-tls"),
            ("foreshore-control", "foreshore-runtime"),
            ("foreshore-edgelink", "foreshore-tls"),
            ("foreshore-edgelink", "foreshore-control"),
        ],
    },
    Layer {
        name: "engines",
        crates: &[
            "foreshore-broker",
            "foreshore-connector-sdk",
            "foreshore-northbound",
            "foreshore-operator",
            "foreshore-cloud",
        ],
        within: &[],
    },
    Layer {
        name: "protocols and endpoints",
        crates: &[
            "foreshore-connector-opcua",
            "foreshore-connector-onvif",
            "foreshore-endpoint-cloud",
            "foreshore-endpoint-mqtt",
            "foreshore-endpoint-file",
            "foreshore-sim",
        ],
        within: &[],
    },
    Layer {
        name: "the binary and tools",
        crates: &[
            "foreshore",
            "foreshore-bench",
            "foreshore-e2e",
            "foreshore-faultfs",
            "foreshore-peers",
            "xtask",
        ],
        within: &[
            ("xtask", "foreshore-peers"),
            ("foreshore-bench", "foreshore-peers"),
        ],
    },
];

/// Crates from the registry that only some of ours may name, so that edge roles run without Kubernetes, protocols stay
/// behind their connector and the pure layer stays pure.
const RESERVED: &[(&str, &[&str])] = &[
    ("kube-client", &["foreshore-operator"]),
    ("kube-runtime", &["foreshore-operator"]),
    ("async-opcua", &["foreshore-connector-opcua", "foreshore-sim"]),
    ("fjall", &["foreshore-store"]),
    ("rusqlite", &["foreshore-cloud"]),
    (
        "anyhow",
        &["foreshore", "foreshore-bench", "foreshore-e2e", "xtask"],
    ),
];

/// What the pure layer must not depend on.
const IMPURE: &[&str] = &[
    "tokio",
    "tonic",
    "axum",
    "tracing-subscriber",
    "reqwest",
    "notify",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Direct dependencies of each crate of the workspace, development dependencies left out.
pub(crate) type Arrows = BTreeMap<String, BTreeSet<String>>;

fn metadata() -> Result<Metadata> {
    let json = shell::output(&mut shell::cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--locked",
    ]))?;
    serde_json::from_str(&json).context("cargo metadata")
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> Result<PathBuf> {
    Ok(metadata()?.target_directory)
}

/// Reads the arrows from cargo's metadata.
pub(crate) fn read() -> Result<Arrows> {
    let metadata = metadata()?;
    let arrows = metadata
        .packages
        .into_iter()
        .filter(|package| metadata.workspace_members.contains(&package.id))
        .map(|package| {
            let dependencies = package
                .dependencies
                .into_iter()
                .filter(|d| d.kind.is_none())
                .map(|d| d.name);
            (package.name, dependencies.collect())
        })
        .collect();
    Ok(arrows)
}

/// Names the layers and their crates, purest first.
pub(crate) fn layers() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    LAYERS.iter().map(|layer| (layer.name, layer.crates))
}

/// Fails, naming every arrow that is not allowed.
pub(crate) fn check() -> Result<()> {
    let wrong = violations(&read()?);
    if wrong.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for line in &wrong {
        write!(text, "\n  {line}")?;
    }
    bail!("dependency arrows that are not allowed:{text}");
}

fn layer_of(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.crates.contains(&name))
}

fn violations(arrows: &Arrows) -> Vec<String> {
    let mut wrong = Vec::new();
    for (from, dependencies) in arrows {
        let Some(layer) = layer_of(from) else {
            wrong.push(format!(
                "{from} belongs to no layer: add it to xtask/src/arrows.rs"
            ));
            continue;
        };
        for to in dependencies {
            wrong.extend(judge(from, layer, to));
        }
    }
    wrong
}

fn judge(from: &str, layer: usize, to: &str) -> Option<String> {
    if let Some((_, allowed)) = RESERVED.iter().find(|(name, _)| *name == to)
        && !allowed.contains(&from)
    {
        return Some(format!("{from} -> {to}: only {} may", allowed.join(", ")));
    }
    if layer == 0 && IMPURE.contains(&to) {
        return Some(format!(
            "{from} -> {to}: the pure layer has no runtime and no I/O"
        ));
    }
    let target = layer_of(to)?;
    let within = LAYERS
        .get(layer)
        .is_some_and(|own| own.within.contains(&(from, to)));
    if target < layer || within {
        return None;
    }
    Some(format!("{from} -> {to}: not in this direction"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(pairs: &[(&str, &str)]) -> Arrows {
        let mut arrows = Arrows::new();
        for (from, to) in pairs {
            arrows
                .entry((*from).to_owned())
                .or_default()
                .insert((*to).to_owned());
        }
        arrows
    }

    #[test]
    fn arrows_that_point_down_pass() {
        let fine = arrows(&[
            ("foreshore-broker", "foreshore-store"),
            ("foreshore-crds", "foreshore-record"),
            ("foreshore", "foreshore-operator"),
            ("foreshore-store", "fjall"),
        ]);
        assert_eq!(violations(&fine), Vec::<String>::new());
    }

    #[test]
    fn arrows_that_point_up_or_sideways_or_out_are_named() {
        for (from, to) in [
            ("foreshore-record", "foreshore-crds"),
            ("foreshore-connector-opcua", "foreshore-connector-onvif"),
            ("foreshore-operator", "foreshore-broker"),
            ("foreshore-connector-sdk", "kube-client"),
            ("foreshore-record", "tokio"),
            ("foreshore-broker", "anyhow"),
            ("foreshore-unheard-of", "serde"),
        ] {
            assert_eq!(violations(&arrows(&[(from, to)])).len(), 1, "{from} -> {to}");
        }
    }
}
