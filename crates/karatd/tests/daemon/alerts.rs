//! The shipped alerting rules, on the series that a real daemon writes: what it says in trouble makes the alert that is meant.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::Daemon;
use crate::stores::{Mount, is_root};

const RULES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../packaging/prometheus/karat.rules.yaml"
);
/// Minutes that the first of two looks is taken to have been true.
const BEFORE: u32 = 5;

pub(crate) fn metrics(daemon: &Daemon) -> String {
    let answer = daemon.get("/metrics");
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body).unwrap()
}

/// Proves by Prometheus' own tool which alerts fire an hour after two looks at a daemon, by their names and what they are about.
/// That a store is on the file system of the system is so on most machines that test, and is left out.
#[track_caller]
pub(crate) fn prove(looks: [&str; 2], firing: &[(&str, &str, &str)]) {
    let mut series: BTreeMap<&str, [Option<&str>; 2]> = BTreeMap::new();
    for (place, look) in looks.iter().enumerate() {
        for line in look.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            series.entry(name).or_default()[place] = Some(value);
        }
    }
    let rules = Path::new(RULES).canonicalize().unwrap();
    let mut text = format!(
        "rule_files:\n  - {}\nevaluation_interval: 1m\ntests:\n",
        rules.display()
    );
    text.push_str("  - interval: 1m\n    input_series:\n");
    for (name, [before, after]) in series {
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        let before = before.map_or_else(|| format!("_x{BEFORE}"), |value| format!("{value}x{}", BEFORE - 1));
        let after = after.map_or_else(|| "_x60".to_owned(), |value| format!("{value}x60"));
        writeln!(
            text,
            "      - series: '{name}{{instance=\"h\",{labels}'\n        values: {before} {after}"
        )
        .unwrap();
    }
    text.push_str(
        "    promql_expr_test:\n      - expr: count by (alertname, store, image) \
         (ALERTS{alertstate=\"firing\", alertname!=\"KaratStoreSharingPathWithOS\"})\n        eval_time: 40m\n        exp_samples:\n",
    );
    for (alert, label, value) in firing {
        let about = if label.is_empty() {
            String::new()
        } else {
            format!(", {label}=\"{value}\"")
        };
        writeln!(
            text,
            "          - {{ labels: '{{alertname=\"{alert}\"{about}}}', value: 1 }}"
        )
        .unwrap();
    }
    if firing.is_empty() {
        text = text.replace("exp_samples:\n", "exp_samples: []\n");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("test.yaml");
    std::fs::write(&file, &text).unwrap();
    match Command::new("promtool").args(["test", "rules"]).arg(&file).output() {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{told}\n{text}");
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => skipped(),
        Err(error) => panic!("promtool does not start: {error}"),
    }
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skipped() {
    eprintln!("skipped: promtool is not installed (package prometheus)");
}

#[test]
fn a_daemon_that_is_well_fires_nothing() {
    let daemon = Daemon::start();
    let look = metrics(&daemon);
    prove([&look, &look], &[]);
}

#[test]
fn an_import_that_is_begun_again_and_again_is_told() {
    let daemon = Daemon::start();
    for name in ["good", "bad"] {
        assert_eq!(daemon.post("/v1/images", &json!({"name": name})).status, 201);
    }
    std::fs::write(daemon.path("state/files/disk.raw"), vec![1; 4096]).unwrap();
    let before = metrics(&daemon);
    assert!(
        before.contains("karat_image_import_restarts_total{image=\"bad\"} 0"),
        "{before}"
    );
    let file = |name: &str| json!({"method": "file", "path": daemon.path(name)});
    for _ in 0..6 {
        let failed = daemon.begin("/v1/images/bad/import", &file("state/files/none.raw"));
        assert_eq!(failed["phase"], "Failed", "{failed}");
    }
    let done = daemon.begin("/v1/images/good/import", &file("state/files/disk.raw"));
    assert_eq!(done["phase"], "Succeeded", "{done}");
    let after = metrics(&daemon);
    assert!(
        after.contains("karat_image_import_restarts_total{image=\"bad\"} 5"),
        "{after}"
    );
    prove(
        [&before, &after],
        &[("KaratDataVolumeUnusualRestartCount", "image", "bad")],
    );
}

#[test]
fn a_default_store_that_makes_full_copies_is_told() {
    let daemon = Daemon::start_with("root_disks = \"copy\"");
    let look = metrics(&daemon);
    prove(
        [&look, &look],
        &[("KaratDefaultStorageClassDegraded", "store", "default")],
    );
}

#[test]
fn a_store_whose_abilities_can_not_be_tried_is_told_until_they_can() {
    if !is_root() {
        return;
    }
    // Inodes for the root, five directories, the lock, the identity, and one of the two files that the trial needs.
    let mount = std::cell::RefCell::new(None);
    let config =
        "reserved_space = 0\n[[images.store]]\nname = \"full\"\npath = \"@DIR@/full\"\nmust_be_mounted = true\n";
    let daemon = Daemon::start_seeded(config, |state| {
        let path = state.with_file_name("full");
        *mount.borrow_mut() = Some(Mount::of_tmpfs(&path, c"size=1m,nr_inodes=9"));
    });
    let mount = mount.into_inner().unwrap();
    // Longer than the daemon needs to try.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let look = metrics(&daemon);
    assert!(
        look.contains("store=\"full\",default=\"false\",complete=\"false\""),
        "{look}"
    );
    prove([&look, &look], &[("KaratStorageProfilesIncomplete", "store", "full")]);
    mount.remount(rustix::mount::MountFlags::empty(), c"nr_inodes=100");
    let look = crate::harness::wait_for("the trial", || {
        Some(metrics(&daemon)).filter(|look| look.contains("store=\"full\",default=\"false\",complete=\"true\""))
    });
    prove([&look, &look], &[]);
}
