//! Where a test happens: a folder, ports, and the example's manifests to begin with.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use foreshore_peers::free_port;

/// One test at a time: each runs whole systems, and a small machine starts several very slowly.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A folder and free ports for a test of its own.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    pub(crate) ports: Ports,
    /// Given back last.
    _turn: MutexGuard<'static, ()>,
}

/// Ports in the place of the example's.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) mqtt: u16,
    pub(crate) edge_link: u16,
    pub(crate) http: u16,
}

impl Site {
    pub(crate) fn new() -> Self {
        // A test that failed has left nothing that this one uses.
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            folder: tempfile::tempdir().unwrap(),
            ports: Ports {
                mqtt: free_port(),
                edge_link: free_port(),
                http: free_port(),
            },
            _turn: turn,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder with the manifests of the example, on this site's ports.
    pub(crate) fn example(&self, name: &str) -> Manifests {
        let manifests = Manifests(self.path(name));
        fs::create_dir(&manifests.0).unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/bottling-line");
        let Ports {
            mqtt,
            edge_link,
            http,
        } = self.ports;
        for entry in fs::read_dir(example).unwrap() {
            let entry = entry.unwrap();
            let mut text = fs::read_to_string(entry.path()).unwrap();
            for (port, free) in [("1883", mqtt), ("7443", edge_link), ("7080", http)] {
                text = text.replace(&format!("port: {port}"), &format!("port: {free}"));
            }
            manifests.write(entry.file_name().to_str().unwrap(), &text);
        }
        manifests
    }
}

/// A folder of manifests that a test may change.
#[derive(Clone)]
pub(crate) struct Manifests(pub(crate) PathBuf);

impl Manifests {
    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }

    /// Puts a file there as editors do: at once.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let new = self.0.join(format!(".{file}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.0.join(file)).unwrap();
    }

    /// Changes what must be there.
    pub(crate) fn edit(&self, file: &str, from: &str, to: &str) {
        let text = self.read(file);
        assert!(text.contains(from), "{file} has no {from:?}");
        self.write(file, &text.replacen(from, to, 1));
    }

    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.0.join(file)).unwrap();
    }

    /// Leaves only these files there.
    pub(crate) fn keep(&self, files: &[&str]) {
        for entry in fs::read_dir(&self.0).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !files.contains(&name.as_str()) {
                self.remove(&name);
            }
        }
    }

    /// Adds a dataflow that takes `numbers/#` to the cloud, and lets the example's operator publish there.
    pub(crate) fn add_numbers(&self) {
        self.write("numbers.yaml", include_str!("numbers.yaml"));
    }
}

/// Whether the long forms of tests are asked for.
pub(crate) fn is_full() -> bool {
    std::env::var("FORESHORE_TEST_FULL").is_ok_and(|full| !full.is_empty())
}

/// Waits until something holds; `false` when it does not in time.
pub(crate) fn wait_until(within: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + within;
    while Instant::now() < end {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    false
}
