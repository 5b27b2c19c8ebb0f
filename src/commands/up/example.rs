//! The built-in plant: the very files of `deploy/examples/bottling-line`.

use foreshore_operator::source::directory::EmbeddedFile;

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        [$(EmbeddedFile {
            name: concat!("bottling-line/", $name).into(),
            text: include_str!(concat!("../../../deploy/examples/bottling-line/", $name)).into(),
        }),*]
    };
}

/// The manifests of the built-in plant.
pub(crate) fn files() -> Vec<EmbeddedFile> {
    embedded![
        "broker.yaml",
        "camera.yaml",
        "capper.yaml",
        "cloud.yaml",
        "connectors.yaml",
        "dataflows.yaml",
        "filler.yaml",
        "labeller.yaml",
        "line.yaml",
        "palletiser.yaml",
        "secrets.yaml",
        "simulators.yaml",
    ]
    .into()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    #[test]
    fn every_file_of_the_example_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/bottling-line");
        let files = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let expected: BTreeSet<String> = files
            .filter(|name| !matches!(name.as_str(), "kustomization.yaml" | "namespace.yaml"))
            .map(|name| format!("bottling-line/{name}"))
            .collect();
        let found: BTreeSet<String> = super::files()
            .into_iter()
            .map(|file| file.name.into_owned())
            .collect();
        assert_eq!(found, expected);
    }
}
