//! The disk, as programs see it.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::{
        fs::{FileExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
};

use nix::errno::Errno;
use tempfile::TempDir;

use crate::{FaultDisk, Loss, Mounted, SECTOR, WriteFault};

/// A disk that is mounted on a folder of its own.
struct Trial {
    disk: FaultDisk,
    mounted: Option<Mounted>,
    home: TempDir,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let mut trial = Self {
            disk: FaultDisk::new(seed),
            mounted: None,
            home: tempfile::tempdir().unwrap(),
        };
        trial.mount();
        trial
    }

    fn mount(&mut self) {
        self.mounted = Some(
            self.disk
                .mount(self.home.path())
                .unwrap_or_else(|error| panic!("{error}")),
        );
    }

    fn fail_power(&mut self, loss: Loss) {
        self.disk.cut_power(loss);
        assert!(
            fs::read_dir(self.home.path()).is_err(),
            "without power nothing answers"
        );
        self.mounted.take().unwrap().unmount().unwrap();
        self.disk.restore_power();
        self.mount();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A file with content and a name that are on the disk.
    fn put(&self, name: &str, content: &[u8]) -> File {
        let path = self.path(name);
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.write_all_at(content, 0).unwrap();
        file.sync_all().unwrap();
        sync(path.parent().unwrap());
        file
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn sync(folder: &Path) {
    File::open(folder).unwrap().sync_all().unwrap();
}

#[test]
fn a_power_failure_leaves_what_was_synced() {
    let mut trial = Trial::new(1);
    let file = trial.put("kept", b"synced");
    file.write_all_at(b"SYN", 0).unwrap();
    file.set_len(100).unwrap();
    // Only its content, which nobody finds without its name.
    let nameless = File::create(trial.path("nameless")).unwrap();
    nameless.sync_all().unwrap();
    assert_eq!(trial.names(), ["kept", "nameless"]);
    drop((file, nameless));
    trial.fail_power(Loss::Unsynced);
    assert_eq!(trial.names(), ["kept"]);
    assert_eq!(fs::read(trial.path("kept")).unwrap(), b"synced");

    let file = File::options().append(true).open(trial.path("kept")).unwrap();
    (&file).write_all(b" again").unwrap();
    file.sync_data().unwrap();
    drop(file);
    trial.fail_power(Loss::Torn);
    assert_eq!(fs::read(trial.path("kept")).unwrap(), b"synced again");
}

#[test]
fn names_reach_the_disk_in_order_and_a_rename_as_a_whole() {
    let mut kept = [0; 4];
    for seed in 0..40 {
        let mut trial = Trial::new(seed);
        drop(trial.put("a", b"first"));
        drop(trial.put("b", b"second"));
        fs::rename(trial.path("b"), trial.path("a")).unwrap();
        fs::hard_link(trial.path("a"), trial.path("c")).unwrap();
        fs::remove_file(trial.path("a")).unwrap();
        trial.fail_power(Loss::Torn);
        let names = trial.names();
        let content = |name| fs::read(trial.path(name)).unwrap();
        let step = match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["a", "b"] => 0,
            ["a"] => 1,
            ["a", "c"] => 2,
            ["c"] => 3,
            _ => panic!("{names:?}"),
        };
        kept[step] += 1;
        let last = names.last().unwrap();
        assert_eq!(content(last), b"second", "{names:?}");
    }
    assert!(kept.iter().all(|count| *count > 0), "{kept:?}");
}

#[test]
fn a_folder_that_is_synced_takes_along_what_belongs_to_it_from_others() {
    let mut trial = Trial::new(1);
    for folder in ["from", "to", "other"] {
        fs::create_dir(trial.path(folder)).unwrap();
    }
    sync(trial.home.path());
    File::create(trial.path("from/file")).unwrap();
    File::create(trial.path("other/file")).unwrap();
    fs::rename(trial.path("from/file"), trial.path("to/file")).unwrap();
    sync(&trial.path("to"));
    trial.fail_power(Loss::Unsynced);
    assert!(trial.path("to/file").exists());
    assert!(!trial.path("from/file").exists() && !trial.path("other/file").exists());
}

#[test]
fn a_sector_is_old_or_new_and_what_was_written_first_need_not_be_there_first() {
    let (mut old, mut new, mut later_only) = (0, 0, 0);
    for seed in 0..40 {
        let mut trial = Trial::new(seed);
        let file = trial.put("file", &[b'o'; 8 * SECTOR]);
        // Not along the bounds of sectors.
        file.write_all_at(&[b'n'; 3 * SECTOR], 100).unwrap();
        file.write_all_at(&[b'm'; SECTOR], 6 * SECTOR as u64).unwrap();
        drop(file);
        trial.fail_power(Loss::Torn);
        let content = fs::read(trial.path("file")).unwrap();
        assert_eq!(content.len(), 8 * SECTOR);
        let mut first_is_whole = true;
        for (index, sector) in content.chunks(SECTOR).enumerate() {
            let start = index * SECTOR;
            let written = |place: usize| (100..100 + 3 * SECTOR).contains(&(start + place));
            let is_new = sector.iter().enumerate().all(|(place, byte)| match byte {
                b'n' => written(place),
                b'm' => index == 6,
                _ => index != 6 && !written(place),
            });
            let is_old = sector.iter().all(|byte| *byte == b'o');
            assert!(is_old || is_new, "seed {seed}, sector {index}");
            if index < 4 {
                first_is_whole &= is_new;
            }
            if index == 6 && is_new && !first_is_whole {
                later_only += 1;
            }
            (old, new) = (
                old + u32::from(is_old && !is_new),
                new + u32::from(is_new && !is_old),
            );
        }
    }
    assert!(old > 10 && new > 10 && later_only > 0, "{old} {new} {later_only}");
}

#[test]
fn after_a_sync_that_failed_what_is_shown_is_not_on_the_disk_and_the_next_sync_does_not_say_so() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut trial = Trial::new(seed);
        let file = trial.put("file", &[b'o'; 4 * SECTOR]);
        file.write_all_at(&[b'n'; 4 * SECTOR], 0).unwrap();
        trial.disk.fail_sync_after(0);
        assert!(trial.disk.is_sync_to_fail());
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
        assert!(!trial.disk.is_sync_to_fail());
        file.sync_all().unwrap();
        drop(file);
        assert_eq!(fs::read(trial.path("file")).unwrap(), [b'n'; 4 * SECTOR]);
        trial.fail_power(Loss::Unsynced);
        lost += u32::from(fs::read(trial.path("file")).unwrap().contains(&b'o'));
    }
    assert!(lost > 5, "{lost}");
}

#[test]
fn a_full_disk_takes_what_fits_and_says_what_is_free() {
    let trial = Trial::new(1);
    drop(trial.put("before", &[1; 10_000]));
    trial.disk.leave_free(3 * 4096);
    let statistics = Command::new("stat")
        .args(["--file-system", "--format=%a %S"])
        .arg(trial.home.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(statistics.stdout).unwrap(), "3 4096\n");
    let mut file = File::create(trial.path("file")).unwrap();
    let error = file.write_all(&[2; 20_000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(fs::metadata(trial.path("file")).unwrap().len(), 3 * 4096);
    fs::remove_file(trial.path("before")).unwrap();
    file.write_all(&[2; 8000]).unwrap();
    trial.disk.free();
    file.write_all(&[2; 20_000]).unwrap();
}

#[test]
fn writes_fail_after_so_many_bytes_until_they_are_mended() {
    let trial = Trial::new(1);
    for (fault, code) in [(WriteFault::NoSpace, 28), (WriteFault::Io, 5)] {
        trial.disk.fail_writes_after(1000, fault);
        let mut file = File::create(trial.path("file")).unwrap();
        let error = file.write_all(&[2; 3000]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(code));
        assert_eq!(fs::metadata(trial.path("file")).unwrap().len(), 1000);
        trial.disk.mend_writes();
        file.write_all(&[2; 3000]).unwrap();
    }
}

/// Python maps files, which Rust does not without unsafe code.
#[test]
fn a_mapping_is_lost_like_a_write_and_kept_by_a_sync() {
    let mut trial = Trial::new(1);
    for (name, flush) in [("flushed", "True"), ("not", "False")] {
        drop(trial.put(name, &[b'o'; 8192]));
        let script = format!(
            "import mmap, os\n\
             file = open('{}', 'r+b')\n\
             mapped = mmap.mmap(file.fileno(), 0)\n\
             mapped[4096:4100] = b'new!'\n\
             if {flush}: mapped.flush()\n\
             os._exit(0)",
            trial.path(name).display()
        );
        let python = Command::new("python3").args(["-c", &script]).status().unwrap();
        assert!(python.success());
        let shown = fs::read(trial.path(name)).unwrap();
        assert_eq!(&shown[4096..4100], b"new!");
    }
    trial.fail_power(Loss::Unsynced);
    let content = |name| fs::read(trial.path(name)).unwrap()[4095..4101].to_vec();
    assert_eq!(content("flushed"), b"onew!o");
    assert_eq!(content("not"), b"oooooo");
}

#[test]
fn everything_that_a_program_does_with_files_is_there() {
    let mut trial = Trial::new(1);
    fs::create_dir_all(trial.path("a/b")).unwrap();
    let names: Vec<_> = (0..300)
        .map(|number| trial.path(&format!("a/{number:03}")))
        .collect();
    for (number, name) in names.iter().enumerate() {
        fs::write(name, vec![number as u8; number * 100]).unwrap();
    }
    assert_eq!(fs::read_dir(trial.path("a")).unwrap().count(), 301);
    assert_eq!(fs::read(&names[299]).unwrap(), vec![43; 29_900]);
    assert_eq!(
        fs::remove_dir(trial.path("a")).unwrap_err().kind(),
        ErrorKind::DirectoryNotEmpty
    );
    // A file that is open is there without a name, and its space is taken.
    let open = File::options().read(true).write(true).open(&names[7]).unwrap();
    fs::remove_file(&names[7]).unwrap();
    open.write_all_at(b"x", 0).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"x");
    // What lies behind an end does not come back.
    let file = trial.put("short", &[1; 10_000]);
    file.set_len(10).unwrap();
    file.set_len(10_000).unwrap();
    let mut content = vec![0; 10_000];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content[..10] == [1; 10] && content[10..].iter().all(|byte| *byte == 0));
    fs::copy(trial.path("short"), trial.path("copy")).unwrap();
    assert_eq!(fs::read(trial.path("copy")).unwrap(), content);
    let lock = trial.put("lock", b"");
    lock.try_lock().unwrap();
    assert!(File::open(trial.path("lock")).unwrap().try_lock().is_err());
    drop(UnixListener::bind(trial.path("socket")).unwrap());
    fs::remove_dir_all(trial.path("a")).unwrap();
    assert_eq!(trial.names(), ["copy", "lock", "short", "socket"]);
    drop((open, file, lock));
    trial.fail_power(Loss::Unsynced);
    // Names that were there when the folder was last synced.
    assert_eq!(trial.names(), ["a", "copy", "lock", "short"]);
}

#[test]
fn a_page_that_can_not_be_read_costs_itself_alone_until_it_is_written() {
    let trial = Trial::new(1);
    let file = trial.put("file", &[b'x'; 5 * 4096 + 10]);
    trial.disk.spoil(file.metadata().unwrap().ino(), 2);
    let file = File::options()
        .read(true)
        .write(true)
        .open(trial.path("file"))
        .unwrap();
    let read = |page: u64| {
        let mut found = [0; 4096];
        file.read_at(&mut found, page * 4096)
    };
    let refused = |page| read(page).unwrap_err().raw_os_error();
    for page in [0, 1, 3, 4] {
        assert_eq!(read(page).unwrap(), 4096, "page {page}");
    }
    assert_eq!((refused(2), read(5).unwrap()), (Some(Errno::EIO as i32), 10));
    assert!(fs::read(trial.path("file")).is_err());
    file.write_all_at(&[b'y'; 4096], 2 * 4096).unwrap();
    assert_eq!(fs::read(trial.path("file")).unwrap()[2 * 4096], b'y');
}
