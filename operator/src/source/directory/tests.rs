use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Arc,
};

use tokio::sync::watch;

use super::*;
use crate::{
    object::{Kind, ObjectKey},
    source::Sourced,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory source that runs, and the folder that it reads.
struct Plant {
    folder: tempfile::TempDir,
    state: tempfile::TempDir,
}

struct Running {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    shutdown: Shutdown,
    task: foreshore_runtime::Task<Result<(), Error>>,
}

impl Plant {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn options(&self) -> Options {
        Options {
            paths: vec![self.folder.path().to_owned()],
            state: Some(self.state.path().to_owned()),
            default_namespace: "plant".to_owned(),
            ..Options::default()
        }
    }

    fn start(&self) -> Running {
        start(self.options())
    }

    fn read(&self) -> Snapshot {
        Directory::open(self.options()).unwrap().read().unwrap()
    }
}

fn start(options: Options) -> Running {
    let (sender, snapshots) = watch::channel(None);
    let shutdown = Shutdown::new();
    let source = Box::new(Directory::open(options).unwrap());
    let task = foreshore_runtime::spawn("source", source.run(sender, shutdown.clone()));
    Running {
        snapshots,
        shutdown,
        task,
    }
}

impl Running {
    async fn until(&mut self, fits: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let wanted = self
            .snapshots
            .wait_for(|snapshot| snapshot.as_ref().is_some_and(|snapshot| fits(snapshot)));
        let found = tokio::time::timeout(DEADLINE, wanted)
            .await
            .expect("in time")
            .expect("source runs")
            .clone();
        found.unwrap()
    }

    async fn end(self) {
        self.shutdown.begin(Duration::from_secs(5));
        self.task.await.unwrap().unwrap();
    }
}

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  value: {value:?}\n---\n")
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::ConfigMap, "plant", name)
}

fn object<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Sourced> {
    snapshot.objects.get(&key(name))
}

fn value(snapshot: &Snapshot, name: &str) -> Option<String> {
    Some(
        object(snapshot, name)?.manifest.as_ref()?.value()["data"]["value"]
            .as_str()?
            .to_owned(),
    )
}

fn generation(snapshot: &Snapshot, name: &str) -> i64 {
    object(snapshot, name).unwrap().meta.generation
}

fn messages(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn edits_are_told_and_generations_rise() {
    let plant = Plant::new();
    plant.write("a.yaml", &map("a", "1"));
    let mut running = plant.start();
    let first = running.until(|snapshot| value(snapshot, "a").is_some()).await;
    assert_eq!(generation(&first, "a"), 1);

    // As editors do: a new file renamed over the old one.
    plant.write(".a.swp", &map("a", "2"));
    fs::rename(plant.path(".a.swp"), plant.path("a.yaml")).unwrap();
    let second = running
        .until(|snapshot| value(snapshot, "a").as_deref() == Some("2"))
        .await;
    assert_eq!(generation(&second, "a"), 2);
    assert_eq!(
        object(&first, "a").unwrap().meta.uid,
        object(&second, "a").unwrap().meta.uid
    );

    // A folder made later is watched as well.
    fs::create_dir(plant.path("more")).unwrap();
    plant.write("more/b.yml", &map("b", "1"));
    running.until(|snapshot| value(snapshot, "b").is_some()).await;
    plant.write("more/b.yml", &map("b", "2"));
    running
        .until(|snapshot| value(snapshot, "b").as_deref() == Some("2"))
        .await;

    fs::remove_file(plant.path("a.yaml")).unwrap();
    let gone = running.until(|snapshot| object(snapshot, "a").is_none()).await;
    assert!(object(&gone, "b").is_some() && gone.problems.is_empty());
    running.end().await;
}

#[tokio::test]
async fn only_a_change_of_the_spec_raises_the_generation() {
    let plant = Plant::new();
    plant.write("a.yaml", &map("a", "1"));
    let mut running = plant.start();
    running.until(|snapshot| object(snapshot, "a").is_some()).await;
    plant.write(
        "a.yaml",
        &format!("# a remark\n{}{}", map("b", "1"), map("a", "1")),
    );
    let snapshot = running.until(|snapshot| object(snapshot, "b").is_some()).await;
    assert_eq!(generation(&snapshot, "a"), 1);
    assert!(
        object(&snapshot, "a")
            .unwrap()
            .origin
            .as_ref()
            .unwrap()
            .position
            .line
            > 2
    );
    running.end().await;
}

#[tokio::test]
async fn a_file_that_can_not_be_understood_removes_nothing() {
    let plant = Plant::new();
    plant.write("a.yaml", &(map("a", "1") + &map("b", "1")));
    let mut running = plant.start();
    running.until(|snapshot| object(snapshot, "b").is_some()).await;

    plant.write("a.yaml", &(map("a", "2") + "kind: [\n"));
    let broken = running.until(|snapshot| !snapshot.problems.is_empty()).await;
    assert!(
        object(&broken, "a").unwrap().manifest.is_none() && object(&broken, "b").unwrap().manifest.is_none()
    );
    assert!(messages(&broken)[0].contains("a.yaml:"), "{:?}", broken.problems);

    // One document without a kind could be the object that is missing.
    plant.write(
        "a.yaml",
        &(map("a", "3") + "kind: ConfigMapp\napiVersion: v1\nmetadata: {name: b}\n"),
    );
    let unknown = running
        .until(|snapshot| value(snapshot, "a").as_deref() == Some("3"))
        .await;
    assert!(object(&unknown, "b").unwrap().manifest.is_none());

    plant.write("a.yaml", &map("a", "3"));
    running.until(|snapshot| object(snapshot, "b").is_none()).await;
    running.end().await;
}

#[tokio::test]
async fn half_a_file_is_waited_for() {
    let plant = Plant::new();
    plant.write("a.yaml", &(map("a", "1") + &map("b", "1")));
    let mut running = plant.start();
    running.until(|snapshot| object(snapshot, "b").is_some()).await;

    let mut file = fs::File::create(plant.path("a.yaml")).unwrap();
    file.write_all(map("a", "2").as_bytes()).unwrap();
    // Longer than the debounce, shorter than the patience: the writer is not done.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(object(running.snapshots.borrow().as_ref().unwrap(), "b").is_some());
    file.write_all(map("b", "2").as_bytes()).unwrap();
    drop(file);
    let snapshot = running
        .until(|snapshot| value(snapshot, "b").as_deref() == Some("2"))
        .await;
    assert_eq!((generation(&snapshot, "a"), generation(&snapshot, "b")), (2, 2));
    running.end().await;
}

#[tokio::test]
async fn a_mounted_config_map_is_exchanged_at_once() {
    let plant = Plant::new();
    for (version, text) in [("..1", map("a", "1")), ("..2", map("a", "2"))] {
        fs::create_dir(plant.path(version)).unwrap();
        plant.write(&format!("{version}/a.yaml"), &text);
    }
    symlink("..1", plant.path("..data")).unwrap();
    symlink("..data/a.yaml", plant.path("a.yaml")).unwrap();
    let mut running = plant.start();
    running
        .until(|snapshot| value(snapshot, "a").as_deref() == Some("1"))
        .await;
    symlink("..2", plant.path("..data_tmp")).unwrap();
    fs::rename(plant.path("..data_tmp"), plant.path("..data")).unwrap();
    let snapshot = running
        .until(|snapshot| value(snapshot, "a").as_deref() == Some("2"))
        .await;
    assert_eq!(generation(&snapshot, "a"), 2);
    running.end().await;
}

#[tokio::test]
async fn a_folder_that_vanishes_removes_nothing() {
    let plant = Plant::new();
    let root = plant.path("root");
    fs::create_dir(&root).unwrap();
    plant.write("root/a.yaml", &map("a", "1"));
    let mut running = start(Options {
        paths: vec![root.clone()],
        ..plant.options()
    });
    running.until(|snapshot| object(snapshot, "a").is_some()).await;
    fs::rename(&root, plant.path("elsewhere")).unwrap();
    let snapshot = running.until(|snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(value(&snapshot, "a").as_deref(), Some("1"));
    running.end().await;

    // Nor does it after a restart, where at least the object is still known.
    let mut running = start(Options {
        paths: vec![root.clone()],
        ..plant.options()
    });
    let snapshot = running.until(|_| true).await;
    assert!(object(&snapshot, "a").unwrap().manifest.is_none());
    fs::rename(plant.path("elsewhere"), &root).unwrap();
    let snapshot = running.until(|snapshot| value(snapshot, "a").is_some()).await;
    assert_eq!(generation(&snapshot, "a"), 1);
    running.end().await;
}

#[tokio::test]
async fn a_folder_that_vanished_while_nobody_looked_removes_nothing() {
    let plant = Plant::new();
    let root = plant.path("root");
    fs::create_dir(&root).unwrap();
    plant.write("root/a.yaml", &map("a", "1"));
    let options = Options {
        paths: vec![root.clone()],
        ..plant.options()
    };
    // One look only: what it saw must be kept at once.
    let mut running = start(options.clone());
    running.until(|snapshot| object(snapshot, "a").is_some()).await;
    running.end().await;
    fs::remove_dir_all(&root).unwrap();
    let mut running = start(options);
    let snapshot = running.until(|_| true).await;
    assert!(object(&snapshot, "a").unwrap().manifest.is_none());
    assert_eq!(snapshot.problems.len(), 1);
    running.end().await;
}

#[tokio::test]
async fn a_root_that_was_never_there_is_a_mistake() {
    let plant = Plant::new();
    let missing = Options {
        paths: vec![plant.path("missing")],
        ..plant.options()
    };
    let running = start(missing.clone());
    let error = running.task.await.unwrap().unwrap_err().to_string();
    assert!(
        error.contains("missing") && error.contains("No such file"),
        "{error}"
    );
    assert!(Directory::open(missing).unwrap().read().is_err());
}

#[test]
fn identities_survive_and_removed_objects_come_back_as_others() {
    let plant = Plant::new();
    let scan = |plant: &Plant| {
        let mut directory = Directory::open(plant.options()).unwrap();
        let mut snapshot = directory
            .catalogue
            .scan(&|_| false, Timestamp::now())
            .snapshot
            .unwrap();
        directory.keep(&mut snapshot);
        snapshot
    };
    plant.write("a.yaml", &map("a", "1"));
    let first = scan(&plant);
    plant.write("a.yaml", &map("a", "2"));
    let second = scan(&plant);
    assert_eq!(
        object(&first, "a").unwrap().meta.uid,
        object(&second, "a").unwrap().meta.uid
    );
    assert_eq!(generation(&second, "a"), 2);
    fs::remove_file(plant.path("a.yaml")).unwrap();
    scan(&plant);
    plant.write("b.yaml", &map("a", "2"));
    let again = scan(&plant);
    assert_ne!(
        object(&again, "a").unwrap().meta.uid,
        object(&second, "a").unwrap().meta.uid
    );
    assert_eq!(generation(&again, "a"), 1);

    // A damaged file costs new identities, not the start.
    let sealed = plant.state.path().join("objects.sealed");
    fs::write(&sealed, "damaged").unwrap();
    assert_ne!(
        object(&scan(&plant), "a").unwrap().meta.uid,
        object(&again, "a").unwrap().meta.uid
    );
    assert!(plant.state.path().join("objects.damaged").exists());
}

#[tokio::test]
async fn of_two_declarations_the_earlier_counts() {
    let plant = Plant::new();
    plant.write("b.yaml", &map("a", "first"));
    let mut running = plant.start();
    running.until(|snapshot| object(snapshot, "a").is_some()).await;
    plant.write("a.yaml", &("# later\n".to_owned() + &map("a", "second")));
    let snapshot = running.until(|snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(value(&snapshot, "a").as_deref(), Some("first"));
    let text = messages(&snapshot).concat();
    assert!(
        text.contains("a.yaml:2") && text.contains("b.yaml:1") && text.contains("ConfigMap plant/a"),
        "{text}"
    );
    assert_eq!(snapshot.problems[0].reason, "Conflict");

    fs::remove_file(plant.path("b.yaml")).unwrap();
    let snapshot = running.until(|snapshot| snapshot.problems.is_empty()).await;
    assert_eq!(
        (value(&snapshot, "a").as_deref(), generation(&snapshot, "a")),
        (Some("second"), 2)
    );
    running.end().await;
}

#[test]
fn two_new_declarations_cancel_each_other() {
    let plant = Plant::new();
    plant.write("a.yaml", &(map("a", "1") + &map("a", "2") + &map("b", "1")));
    let snapshot = plant.read();
    assert!(object(&snapshot, "a").is_none() && object(&snapshot, "b").is_some());
    assert_eq!(snapshot.problems.len(), 2);
    assert_eq!(
        snapshot
            .problems
            .iter()
            .map(|problem| problem.line)
            .collect::<Vec<_>>(),
        [Some(1), Some(8)]
    );
}

#[test]
fn secrets_are_read_from_private_files_only() {
    let plant = Plant::new();
    let secrets = tempfile::tempdir().unwrap();
    let write = |path: &str, content: &str, mode: u32| {
        let path = secrets.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("plc/username", "anna", 0o600);
    write("plc/password", "s3cret", 0o400);
    write("other/camera/password", "x", 0o600);
    write("open/password", "x", 0o644);
    write("open/fine", "x", 0o600);
    write("stray", "x", 0o600);
    let options = Options {
        secrets: Some(secrets.path().to_owned()),
        ..plant.options()
    };
    let snapshot = Directory::open(options).unwrap().read().unwrap();
    let keys: Vec<_> = snapshot.objects.keys().map(ToString::to_string).collect();
    assert_eq!(keys, ["Secret other/camera", "Secret plant/plc"]);
    let plc = &snapshot.objects[&ObjectKey::new(Kind::Secret, "plant", "plc")];
    assert_eq!(
        plc.manifest.as_ref().unwrap().value()["data"]["password"],
        "czNjcmV0"
    );
    let text = messages(&snapshot).join("\n");
    assert!(
        text.contains("open/password") && text.contains("found 0644, allowed 0600"),
        "{text}"
    );
    assert!(text.contains("stray") && text.contains("NAME/KEY"), "{text}");
    assert!(!format!("{snapshot:?}").contains("czNjcmV0"));
}

#[test]
fn embedded_files_are_read_like_others() {
    let plant = Plant::new();
    plant.write("kustomization.yaml", "resources: [a.yaml]");
    let embedded = vec![EmbeddedFile {
        name: "a.yaml".into(),
        text: map("a", "1").into(),
    }];
    let options = Options {
        embedded,
        ..plant.options()
    };
    let snapshot = Directory::open(options).unwrap().read().unwrap();
    assert_eq!(
        object(&snapshot, "a")
            .unwrap()
            .origin
            .as_ref()
            .unwrap()
            .to_string(),
        "embedded/a.yaml:1"
    );
    assert!(snapshot.problems.is_empty());
}

#[test]
fn what_is_no_text_or_too_long_is_told() {
    let plant = Plant::new();
    fs::write(plant.path("a.yaml"), b"a: 1\nb: \xff\n").unwrap();
    fs::File::create(plant.path("b.yaml"))
        .unwrap()
        .set_len(9 << 20)
        .unwrap();
    let snapshot = plant.read();
    let places: Vec<_> = snapshot
        .problems
        .iter()
        .map(|problem| (problem.line, problem.reason))
        .collect();
    assert_eq!(places, [(Some(2), "Invalid"), (None, "TooLarge")]);
}

#[tokio::test]
async fn nothing_is_told_while_nothing_changes() {
    let plant = Plant::new();
    plant.write("a.yaml", &map("a", "1"));
    let mut running = start(Options {
        rescan: Duration::from_millis(20),
        ..plant.options()
    });
    running.until(|_| true).await;
    running.snapshots.mark_unchanged();
    let state = fs::metadata(Path::new(plant.state.path()).join("objects.sealed"))
        .unwrap()
        .modified()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!running.snapshots.has_changed().unwrap());
    let after = fs::metadata(Path::new(plant.state.path()).join("objects.sealed"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(state, after);
    running.end().await;
}
