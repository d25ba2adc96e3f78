//! Internal snapshots, made and used by this crate and by `qemu-img snapshot`, in both directions.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and images here are small"
)]

mod support;

use std::path::Path;

use disk_qcow2::ops::snapshot::{self, Moment, SnapshotError};
use disk_qcow2::ops::{CreateOptions, Limits, create};
use support::{KINDS, assert_clean, bench, block_on, checked, contents, io, make, qemu_img, qemu_io};

const NOW: Moment = Moment {
    seconds: 1_700_000_000,
    nanoseconds: 42,
};

fn sound(path: &Path, what: &str) {
    assert_clean(path, what);
    let report = checked(path);
    assert!(report.is_clean(), "{what}: {report:#?}");
}

/// One side of the comparison.
trait Side {
    fn create(&self, path: &Path, name: &str);
    fn apply(&self, path: &Path, name: &str);
    fn delete(&self, path: &Path, name: &str);
}

struct Ours;
struct Theirs;

impl Side for Ours {
    fn create(&self, path: &Path, name: &str) {
        block_on(snapshot::create(&*io(path), name, NOW, Limits::default())).unwrap();
    }

    fn apply(&self, path: &Path, name: &str) {
        block_on(snapshot::apply(&*io(path), name, Limits::default())).unwrap();
    }

    fn delete(&self, path: &Path, name: &str) {
        block_on(snapshot::delete(&*io(path), name, Limits::default())).unwrap();
    }
}

impl Side for Theirs {
    fn create(&self, path: &Path, name: &str) {
        qemu_img(&["snapshot", "-c", name, path.to_str().unwrap()]);
    }

    fn apply(&self, path: &Path, name: &str) {
        qemu_img(&["snapshot", "-a", name, path.to_str().unwrap()]);
    }

    fn delete(&self, path: &Path, name: &str) {
        qemu_img(&["snapshot", "-d", name, path.to_str().unwrap()]);
    }
}

/// A short life of an image with two snapshots; who does what changes.
fn live(path: &Path, what: &str, sides: [&dyn Side; 3]) {
    let [maker, user, remover] = sides;
    let first = contents(path);
    maker.create(path, "one");
    sound(path, &format!("{what}: one made"));
    qemu_io(path, &["write -P 9 128k 700k", "write -P 8 3M 64k", "discard 4M 128k"]);
    sound(path, &format!("{what}: written after one"));
    let second = contents(path);
    user.create(path, "two");
    qemu_io(path, &["write -P 7 0 8M"]);
    sound(path, &format!("{what}: written after two"));
    user.apply(path, "one");
    sound(path, &format!("{what}: one applied"));
    assert!(contents(path) == first, "{what}: the disk is as it was at one");
    qemu_io(path, &["write -P 6 1M 1M"]);
    sound(path, &format!("{what}: written after one was applied"));
    remover.apply(path, "two");
    assert!(contents(path) == second, "{what}: the disk is as it was at two");
    remover.delete(path, "one");
    sound(path, &format!("{what}: one deleted"));
    assert!(contents(path) == second, "{what}: nothing of two is lost");
    qemu_io(path, &["write -P 5 2M 3M"]);
    remover.delete(path, "two");
    sound(path, &format!("{what}: two deleted"));
}

#[test]
fn either_side_uses_what_the_other_has_made() {
    let Some(dir) = bench() else { return };
    for (name, options) in KINDS {
        // Narrow refcounts do not hold what compressed clusters and snapshots need.
        if ["bits1", "bits2", "bits8"].contains(name) {
            continue;
        }
        let sides: [(&str, [&dyn Side; 3]); 3] = [
            ("ours", [&Ours, &Ours, &Ours]),
            ("ours then theirs", [&Ours, &Theirs, &Ours]),
            ("theirs then ours", [&Theirs, &Ours, &Theirs]),
        ];
        let whole = make(dir.path(), name, options);
        // Who does what matters little to the kind of image: not every mixture for every kind.
        let mixed = ["plain", "v2", "512", "extended", "lazy"].contains(name);
        for (who, sides) in sides.into_iter().take(if mixed { 3 } else { 1 }) {
            let path = dir.path().join("copy.qcow2");
            std::fs::copy(&whole, &path).unwrap();
            live(&path, &format!("{name}, {who}"), sides);
        }
    }
}

#[test]
fn lists_agree() {
    let Some(dir) = bench() else { return };
    let path = make(dir.path(), "list", "cluster_size=4k");
    Theirs.create(&path, "made by QEMU");
    Ours.create(&path, "made here, mit Ümläuten");
    let ours = serde_json::to_value(block_on(snapshot::list(&*io(&path))).unwrap()).unwrap();
    let info = qemu_img(&["info", "--output=json", path.to_str().unwrap()]);
    let theirs: serde_json::Value = serde_json::from_str(&info).unwrap();
    let theirs = theirs["snapshots"].as_array().unwrap();
    assert_eq!(theirs.len(), 2);
    for (ours, theirs) in ours.as_array().unwrap().iter().zip(theirs) {
        for (name, value) in theirs.as_object().unwrap() {
            if name != "icount" {
                assert_eq!(&ours[name], value, "{name}");
            }
        }
    }
    assert_eq!(ours[1]["id"], "2");
    assert_eq!(ours[1]["date-sec"], NOW.seconds);
    assert_eq!(ours[1]["disk-size"], 8 << 20);
}

#[test]
fn a_snapshot_of_another_size_brings_its_size() {
    let Some(dir) = bench() else { return };
    let path = make(dir.path(), "size", "cluster_size=512");
    let first = contents(&path);
    Ours.create(&path, "small");
    qemu_img(&["resize", "-q", path.to_str().unwrap(), "64M"]);
    qemu_img(&["bitmap", "--add", path.to_str().unwrap(), "b"]);
    qemu_io(&path, &["write -P 3 60M 4M"]);
    Ours.create(&path, "large");
    let second = contents(&path);
    Ours.apply(&path, "small");
    sound(&path, "small again");
    assert!(contents(&path) == first);
    Ours.apply(&path, "large");
    assert!(contents(&path) == second);
    sound(&path, "large again");
    Ours.apply(&path, "small");
    assert!(contents(&path) == first);
    let info = qemu_img(&["info", "--output=json", path.to_str().unwrap()]);
    assert!(info.contains("in-use"), "the bitmap is known to be wrong: {info}");
}

#[test]
fn many_snapshots_and_what_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.qcow2");
    block_on(create(&*io(&path), None, &CreateOptions::of_size(1 << 30))).unwrap();
    for index in 1..=50 {
        let id = block_on(snapshot::create(
            &*io(&path),
            &format!("s{index}"),
            NOW,
            Limits::default(),
        ));
        assert_eq!(id.unwrap(), index.to_string());
    }
    let refuse = |name: &str| block_on(snapshot::create(&*io(&path), name, NOW, Limits::default())).unwrap_err();
    assert!(matches!(refuse("s7"), SnapshotError::Exists(_)));
    assert!(matches!(refuse(""), SnapshotError::Name(_)));
    assert!(matches!(refuse("a\nb"), SnapshotError::Name(_)));
    let missing = block_on(snapshot::delete(&*io(&path), "s51", Limits::default()));
    assert!(matches!(missing, Err(SnapshotError::Missing(_))));
    for index in (1..=50).rev() {
        block_on(snapshot::delete(&*io(&path), &format!("s{index}"), Limits::default())).unwrap();
    }
    assert!(block_on(snapshot::list(&*io(&path))).unwrap().is_empty());
    assert!(checked(&path).is_clean());
    // What was freed is used again.
    assert!(std::fs::metadata(&path).unwrap().len() < 4 << 20);
}
