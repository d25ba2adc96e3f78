//! The alerting rules that are shipped: they name metrics that exist, and Prometheus' own tool accepts and proves them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/prometheus")
}

#[test]
fn alerts_have_their_names_and_read_known_metrics() {
    let text = std::fs::read_to_string(directory().join("karat.rules.yaml")).unwrap();
    let rules: Rules = serde_saphyr::from_str(&text).unwrap();
    let rules: Vec<_> = rules.groups.into_iter().flat_map(|group| group.rules).collect();
    let names: BTreeSet<_> = rules.iter().map(|rule| rule.alert.as_str()).collect();
    let expected = [
        "KaratDataImportCronOutdated",
        "KaratDataVolumeUnusualRestartCount",
        "KaratDefaultStorageClassDegraded",
        "KaratImageServiceNotReady",
        "KaratMultipleDefaultVirtStorageClasses",
        "KaratNoDefaultStorageClass",
        "KaratStorageProfilesIncomplete",
        "KaratStoreNotReady",
        "KaratStoreSharingPathWithOS",
    ];
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected);
    for rule in rules {
        let words = rule.expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let read: Vec<_> = words.filter(|word| word.starts_with("karat_")).collect();
        assert!(!read.is_empty(), "{} reads nothing", rule.alert);
        for metric in read {
            assert!(boot_sources::METRICS.contains(&metric), "{} reads {metric}", rule.alert);
        }
    }
}

#[test]
fn promtool_accepts_and_proves_them() {
    let run = |arguments: [&str; 3]| {
        Command::new("promtool")
            .args(arguments)
            .current_dir(directory())
            .output()
    };
    for arguments in [
        ["check", "rules", "karat.rules.yaml"],
        ["test", "rules", "karat.rules.test.yaml"],
    ] {
        match run(arguments) {
            Ok(output) => {
                let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{told}");
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: promtool is not installed (package prometheus)");
                return;
            }
            Err(error) => panic!("promtool does not start: {error}"),
        }
    }
}
