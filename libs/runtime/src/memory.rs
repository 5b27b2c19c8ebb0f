//! How much memory a process may use.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Bytes that this process may use: what the machine has, or the tightest of its control groups allows (`memory.max`, or
/// `memory.limit_in_bytes` of version 1). `None` where the system does not say.
pub fn usable() -> Option<u64> {
    usable_below(Path::new("/"))
}

fn usable_below(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_groups = groups
        .lines()
        .filter_map(limit_file)
        .flat_map(|(base, group, file)| {
            // A container may see its own group as the root of all, whatever the path says: that is among the ancestors.
            let base = root.join(base);
            let group = PathBuf::from(group.trim_start_matches('/'));
            let limits: Vec<u64> = group
                .ancestors()
                .filter_map(|group| number(&fs::read_to_string(base.join(group).join(file)).ok()?))
                .collect();
            limits
        });
    of_groups.chain(of_machine(root)).min()
}

/// Where the hierarchy of a line of `/proc/self/cgroup` (cgroups(7)) is, the group in it, and the file with its limit.
fn limit_file(line: &str) -> Option<(&'static str, &str, &'static str)> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    if controllers.is_empty() {
        return Some(("sys/fs/cgroup", group, "memory.max"));
    }
    controllers
        .split(',')
        .any(|controller| controller == "memory")
        .then_some(("sys/fs/cgroup/memory", group, "memory.limit_in_bytes"))
}

/// `MemTotal` of `/proc/meminfo` (proc(5)).
fn of_machine(root: &Path) -> Option<u64> {
    let facts = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = facts.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    number(total.trim().strip_suffix("kB")?)?.checked_mul(1024)
}

/// A number; `None` for `max`, which is no limit.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "MemTotal:        2097152 kB\nMemFree:  12 kB\n";

    /// What a system with these files allows, in MiB.
    fn usable(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        usable_below(root.path()).map(|bytes| bytes >> 20)
    }

    #[test]
    fn the_tightest_limit_is_what_may_be_used() {
        let unified = ("proc/self/cgroup", "0::/plant/broker\n");
        let machine = ("proc/meminfo", MACHINE);
        let of = |path, text| [machine, unified, (path, text)];
        assert_eq!(usable(&[]), None);
        assert_eq!(usable(&[machine]), Some(2048));
        assert_eq!(
            usable(&of("sys/fs/cgroup/plant/broker/memory.max", "max\n")),
            Some(2048)
        );
        assert_eq!(
            usable(&of("sys/fs/cgroup/plant/broker/memory.max", "268435456\n")),
            Some(256)
        );
        assert_eq!(
            usable(&of("sys/fs/cgroup/plant/memory.max", "536870912\n")),
            Some(512)
        );
        // A container whose group is mounted as the root.
        assert_eq!(usable(&of("sys/fs/cgroup/memory.max", "134217728\n")), Some(128));
        assert_eq!(
            usable(&of("sys/fs/cgroup/others/memory.max", "1048576\n")),
            Some(2048)
        );
    }

    #[test]
    fn limits_of_version_1_count_too() {
        let groups = ("proc/self/cgroup", "5:cpu,memory:/plant\n1:cpuset:/x\n0::/\n");
        let limit = |path| (path, "1073741824\n");
        assert_eq!(
            usable(&[groups, limit("sys/fs/cgroup/memory/plant/memory.limit_in_bytes")]),
            Some(1024)
        );
        assert_eq!(
            usable(&[groups, limit("sys/fs/cgroup/memory/x/memory.limit_in_bytes")]),
            None
        );
    }

    #[test]
    fn this_process_may_use_some() {
        assert!(super::usable() > Some(16 << 20));
    }
}
