//! Files: what is read, what is overridden, and that everything wrong is told with its line.

use std::path::Path;

use crate::*;

struct Dirs(tempfile::TempDir);

impl Dirs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["system", "custom"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn read(&self) -> (std::collections::BTreeMap<String, Found>, Vec<String>) {
        let (found, problems) = read_directories(&self.0.path().join("system"), &self.0.path().join("custom"));
        let short = |problem: &FileProblem| {
            problem
                .to_string()
                .replace(&format!("{}/", self.0.path().display()), "")
        };
        let told = problems.iter().map(short).collect();
        (found, told)
    }
}

const DEBIAN: &str = r#"
[[boot_source]]
name = "debian-12"
source = { registry = "docker://quay.io/containerdisks/debian:12" }
schedule = "0 */12 * * *"
managed = "debian12"
"#;

#[test]
fn defaults_are_those_of_the_issue() {
    let dirs = Dirs::new();
    dirs.write("system/debian.toml", DEBIAN);
    let (found, told) = dirs.read();
    assert!(told.is_empty(), "{told:?}");
    let source = &found["debian-12"].source;
    assert_eq!(
        (source.imports_to_keep, source.garbage_collect),
        (3, GarbageCollect::Outdated)
    );
    assert_eq!((source.retention, source.enabled), (Retention::RetainAll, true));
    assert_eq!((source.origin, source.jitter_seconds), (Origin::System, 300));
}

#[test]
fn a_custom_file_changes_switches_off_and_adds() {
    let dirs = Dirs::new();
    dirs.write("system/debian.toml", DEBIAN);
    dirs.write(
        "system/fedora.toml",
        &DEBIAN.replace("debian-12", "fedora-41").replace("debian12", "fedora"),
    );
    dirs.write(
        "custom/mine.toml",
        r#"
        [[boot_source]]
        name = "debian-12"
        enabled = false
        [[boot_source]]
        name = "fedora-41"
        schedule = "@weekly"
        max_size = "20Gi"
        [[boot_source]]
        name = "mine"
        schedule = "@daily"
        managed = "mine"
        [boot_source.source]
        url = "https://server/a.qcow2"
        checksums = "https://server/SHA256SUMS"
        "#,
    );
    let (found, told) = dirs.read();
    assert!(told.is_empty(), "{told:?}");
    let debian = &found["debian-12"].source;
    assert_eq!(
        (debian.enabled, debian.origin, debian.managed.as_str()),
        (false, Origin::System, "debian12")
    );
    let fedora = &found["fedora-41"].source;
    assert_eq!(
        (fedora.schedule.as_str(), fedora.max_size.unwrap().bytes()),
        ("@weekly", 20 << 30)
    );
    assert_eq!((found["mine"].source.origin, found.len()), (Origin::Custom, 3));
    assert!(found["mine"].path.ends_with("custom/mine.toml"));
}

#[test]
fn everything_wrong_is_told_with_its_line() {
    let dirs = Dirs::new();
    dirs.write(
        "system/a.toml",
        r#"
[[boot_source]]
name = "Bad Name"
schedule = "61 * * * *"
imports_to_keep = "three"
colour = "red"
garbage_collect = "Sometimes"

[boot_source.source]
registry = "docker://"
pull_method = "node"

[[boot_source]]
name = "b"
source = { url = "https://a/b", bucket = "c" }
jitter_seconds = 86401
managed = "b"

[other]
"#,
    );
    dirs.write("custom/syntax.toml", "\n\nname = \"x\ny = 1\n");
    dirs.write("custom/z.toml", "boot_source = 3\n");
    let (found, told) = dirs.read();
    assert!(found.is_empty());
    let mut lines: Vec<_> = told
        .iter()
        .map(|text| text.split(": ").take(2).collect::<Vec<_>>().join(": "))
        .collect();
    lines.sort();
    let expected = [
        "custom/syntax.toml:3",
        "custom/z.toml:1: boot_source",
        "system/a.toml:10: source.registry",
        "system/a.toml:11: source.pull_method",
        "system/a.toml:15: source",
        "system/a.toml:16: jitter_seconds",
        "system/a.toml:19: unknown field `other`, expected [[boot_source]]",
        "system/a.toml:2: managed",
        "system/a.toml:13: schedule",
        "system/a.toml:3: name",
        "system/a.toml:4: schedule",
        "system/a.toml:5: imports_to_keep",
        "system/a.toml:6: unknown field `colour`, expected one of name, description, source, schedule, jitter_seconds, managed, imports_to_keep, garbage_collect, retention, enabled, store, max_size",
        "system/a.toml:7: garbage_collect",
    ];
    for expected in expected {
        assert!(
            lines.iter().any(|line| line.starts_with(expected)),
            "{expected} missing in {told:#?}"
        );
    }
    assert!(lines.len() <= expected.len() + 1, "{told:#?}");
}

#[test]
fn a_wrong_override_leaves_the_system_source_as_it_was() {
    let dirs = Dirs::new();
    dirs.write("system/debian.toml", DEBIAN);
    dirs.write(
        "custom/a.toml",
        "[[boot_source]]\nname = \"debian-12\"\nimports_to_keep = 0\n",
    );
    let (found, told) = dirs.read();
    assert_eq!(found["debian-12"].source.imports_to_keep, 3);
    assert_eq!(told, ["custom/a.toml:3: imports_to_keep: 0; take 1 to 100"]);
}

#[test]
fn names_and_aliases_are_there_once() {
    let dirs = Dirs::new();
    dirs.write("custom/a.toml", DEBIAN);
    dirs.write("custom/b.toml", DEBIAN);
    dirs.write("custom/c.toml", &DEBIAN.replace("debian-12", "other"));
    let (found, told) = dirs.read();
    assert_eq!(found.len(), 1);
    assert!(told[0].starts_with("custom/b.toml:2: \"debian-12\" is in "), "{told:?}");
    assert_eq!(
        told[1],
        "custom/c.toml: other: managed \"debian12\" is that of debian-12 already; take another"
    );
}

#[test]
fn what_is_shipped_reads() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/boot-sources.d");
    let (found, problems) = read_directories(&shipped, Path::new("/nonexistent"));
    assert!(problems.is_empty(), "{problems:?}");
    assert!(found.len() >= 3, "{}", found.len());
    assert!(found.values().all(|found| found.source.origin == Origin::System));
}

#[test]
fn missing_directories_are_empty_and_large_files_are_refused() {
    let dirs = Dirs::new();
    dirs.write("custom/large.toml", &"#".repeat((256 << 10) + 1));
    let (found, told) = dirs.read();
    assert!(found.is_empty());
    assert_eq!(told, ["custom/large.toml: larger than 262144 bytes: split it"]);
    let nowhere = Path::new("/nonexistent");
    assert_eq!(read_directories(nowhere, nowhere).1, []);
}
