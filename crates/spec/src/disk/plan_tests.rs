//! Tests of planning disks.

use super::*;
use crate::id::VmId;
use crate::plan::VmPlan;

fn try_disks(disks: &str) -> Result<VmPlan, Problems> {
    let host = HostLimits {
        memory_bytes: 8 << 30,
        file_roots: vec![PathBuf::from("/f")],
    };
    let text = format!(r#"{{"name": "a", "boot": {{"kernel": "/f/k"}}, "disks": {disks}}}"#);
    VmPlan::new(&serde_json::from_str(&text).unwrap(), &host)
}

fn problems(disks: &str) -> Vec<String> {
    let told = try_disks(disks).unwrap_err();
    told.list().iter().map(|problem| problem.field.clone()).collect()
}

#[test]
fn a_path_is_raw_and_virtio_unless_said() {
    let plan = try_disks(r#"[{"path": "/f/a"}, {"path": "/f/b", "format": "qcow2", "bus": "scsi"}, {"volume": "v"}]"#)
        .unwrap();
    let path = |path: &str, format| DiskSource::Path {
        path: PathBuf::from(path),
        format,
    };
    let sources: Vec<_> = plan.disks.iter().map(|disk| disk.source.clone()).collect();
    assert_eq!(
        sources,
        [
            path("/f/a", DiskFormat::Raw),
            path("/f/b", DiskFormat::Qcow2),
            DiskSource::Volume("v".to_owned())
        ]
    );
    let first = &plan.disks[0].disk;
    assert_eq!(
        (first.bus, first.cache, first.sector),
        (DiskBus::Virtio, DiskCache::Cached, DiskSector::B512)
    );
    assert_eq!(
        (first.name.as_str(), first.serial.as_str(), first.queues),
        ("disk1", "disk1", 1)
    );
}

#[test]
fn a_disk_is_from_one_place() {
    assert_eq!(problems("[{}]"), ["disks[0]"]);
    assert_eq!(problems(r#"[{"path": "/f/a", "volume": "v"}]"#), ["disks[0]"]);
    assert_eq!(problems(r#"[{"volume": "v", "format": "raw"}]"#), ["disks[0].format"]);
    assert_eq!(problems(r#"[{"volume": " "}]"#), ["disks[0].volume"]);
    assert_eq!(problems(r#"[{"volume": "v"}, {"volume": "v"}]"#), ["disks[1].volume"]);
    assert_eq!(problems(r#"[{"path": "/f/a"}, {"path": "/f/a"}]"#), ["disks[1].path"]);
}

#[test]
fn what_does_not_go_together_is_told() {
    assert_eq!(problems(r#"[{"volume": "v", "cdrom": true}]"#), ["disks[0].cdrom"]);
    assert_eq!(
        problems(r#"[{"volume": "v", "cdrom": true, "bus": "scsi", "sector_size": 512, "queues": 1}]"#),
        ["disks[0].queues", "disks[0].sector_size"]
    );
    assert_eq!(
        problems(r#"[{"volume": "v", "limits": {"iops": 0, "bytes_per_s": "0", "burst_ms": 0}}]"#),
        [
            "disks[0].limits.bytes_per_s",
            "disks[0].limits.iops",
            "disks[0].limits.burst_ms"
        ]
    );
    assert_eq!(problems(r#"[{"volume": "v", "name": "root"}]"#), ["disks[0].name"]);
    assert_eq!(
        problems(r#"[{"volume": "v", "name": "disk2"}, {"volume": "w"}]"#),
        ["disks[1].name"]
    );
    let odd = serde_json::from_str::<DiskWish>(r#"{"volume": "v", "sector_size": 1024}"#).unwrap_err();
    assert!(odd.to_string().contains("512 or 4096"), "{odd}");
}

#[test]
fn the_boot_order_decides_who_is_found_first_and_is_the_root() {
    let plan = try_disks(
        r#"[{"volume": "c"}, {"volume": "b", "boot_order": 7}, {"volume": "a", "boot_order": 2, "bus": "scsi"}]"#,
    )
    .unwrap();
    assert_eq!(plan.disks.iter().map(|disk| disk.index).collect::<Vec<_>>(), [2, 1, 0]);
    let machine = plan.machine(VmId::random(), None).unwrap();
    assert_eq!(machine.disks()[0].name.as_str(), "disk3");
    assert_eq!(machine.cmdline(), "console=ttyS0 root=/dev/sda");
    assert_eq!(plan.machine(VmId::random(), Some("mine")).unwrap().cmdline(), "mine");
    assert_eq!(
        problems(r#"[{"volume": "a", "boot_order": 0}]"#),
        ["disks[0].boot_order"]
    );
    assert_eq!(
        problems(r#"[{"volume": "a", "boot_order": 1}, {"volume": "b", "boot_order": 1}]"#),
        ["disks[1].boot_order"]
    );
}

#[test]
fn long_names_give_serials_that_fit() {
    let name = "n".repeat(40);
    let plan = try_disks(&format!(r#"[{{"volume": "v", "name": "{name}"}}]"#)).unwrap();
    assert_eq!(plan.disks[0].disk.serial.len(), DISK_SERIAL_MAX);
}
