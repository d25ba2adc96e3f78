//! Wishes, conditions, and that nothing falls between them.

use std::collections::BTreeMap;

use spec::DiskBus;

use super::*;
use crate::fault::Faults;
use crate::format::DiskFormat;
use crate::property::{PropertyUse, ValueRule, check_properties, known_keys};

fn properties(pairs: &[(&str, &str)]) -> crate::Properties {
    let written: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut faults = Faults::new();
    let properties = check_properties(&written, Some(DiskFormat::Ami), &mut faults, &mut Vec::new());
    assert!(faults.list().is_empty(), "{faults}");
    properties
}

fn everything() -> Abilities {
    Abilities {
        watchdog: true,
        guest_agent: true,
        numa: true,
        pinning: true,
        firmware: Firmware::ALL.to_vec(),
        secure_boot: true,
        windows: true,
        ..Abilities::x86_64()
    }
}

fn nothing() -> Abilities {
    Abilities {
        scsi: false,
        multiqueue: false,
        rng: false,
        topology: false,
        hugepages: false,
        ..Abilities::x86_64()
    }
}

/// Values that say the same as leaving the property out.
const SAYS_NOTHING: &[(&str, &str)] = &[
    ("hw_watchdog_action", "disabled"),
    ("hw_boot_menu", "false"),
    ("hw_mem_encryption", "false"),
    ("hw_numa_nodes", "1"),
];

/// One value of each kind that a rule takes.
fn samples(rule: ValueRule) -> Vec<String> {
    match rule {
        ValueRule::Choice(values) => values.iter().map(|value| (*value).to_owned()).collect(),
        ValueRule::Integer { min, max } => vec![min.to_string(), max.to_string()],
        ValueRule::Uuid | ValueRule::ImageId => vec!["67e55044-10b1-426f-9247-bb680e5fe0c8".into()],
        ValueRule::CpuList => vec!["0,1".into()],
        ValueRule::OsDistro => vec!["debian".into(), "alpine".into()],
        ValueRule::Text { .. } => vec!["text".into()],
    }
}

#[test]
fn every_value_of_every_key_is_applied_or_reported() {
    let mut tried = 0;
    for abilities in [everything(), Abilities::x86_64(), nothing()] {
        for spec in known_keys().iter().filter(|spec| spec.used_for == PropertyUse::Machine) {
            for value in samples(spec.value) {
                let key = if spec.indexed {
                    format!("{}.0", spec.key)
                } else {
                    spec.key.to_owned()
                };
                let mut pairs = vec![(key.as_str(), value.as_str())];
                if spec.indexed {
                    pairs.push(("hw_numa_nodes", "1"));
                }
                if value == "scsi" {
                    pairs.push(("hw_scsi_model", "virtio-scsi"));
                }
                let (hints, conditions) = machine_hints(&properties(&pairs), &abilities);
                let reported = conditions.iter().any(|condition| condition.property == key);
                let applied = hints != MachineHints::default();
                let silent = SAYS_NOTHING.contains(&(spec.key, value.as_str()));
                assert!(applied || reported || silent, "{key}={value} is dropped in silence");
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

#[test]
fn scsi_and_the_default_s17_18() {
    let today = Abilities::x86_64();
    let (hints, conditions) = machine_hints(&properties(&[]), &today);
    assert_eq!((hints.disk_bus, conditions.len()), (None, 0));
    for pairs in [
        &[("hw_disk_bus", "scsi"), ("hw_scsi_model", "virtio-scsi")][..],
        &[("hw_scsi_model", "virtio-scsi")],
    ] {
        let (hints, conditions) = machine_hints(&properties(pairs), &today);
        assert_eq!((hints.disk_bus, conditions.len()), (Some(DiskBus::Scsi), 0));
    }
    let (hints, conditions) = machine_hints(&properties(&[("hw_disk_bus", "ide")]), &today);
    assert_eq!(hints.disk_bus, None);
    assert_eq!(
        (conditions[0].code(), conditions[0].severity),
        ("bus_not_available", Severity::Refused)
    );
    let pairs = [
        ("hw_disk_bus", "virtio"),
        ("hw_cdrom_bus", "scsi"),
        ("hw_scsi_model", "virtio-scsi"),
    ];
    let (hints, conditions) = machine_hints(&properties(&pairs), &today);
    assert_eq!(
        (hints.disk_bus, hints.cdrom_bus),
        (Some(DiskBus::Virtio), Some(DiskBus::Scsi))
    );
    assert!(conditions.is_empty(), "{conditions:?}");
}

#[test]
fn watchdog_unset_is_no_device_and_each_action_is_known_s17_20() {
    let can = everything();
    assert_eq!(machine_hints(&properties(&[]), &can).0.watchdog, None);
    assert_eq!(
        machine_hints(&properties(&[("hw_watchdog_action", "disabled")]), &can)
            .0
            .watchdog,
        None
    );
    for action in WatchdogAction::ALL {
        let given = machine_hints(&properties(&[("hw_watchdog_action", action.as_str())]), &can);
        assert_eq!((given.0.watchdog, given.1.len()), (Some(*action), 0));
        let (hints, conditions) = machine_hints(&properties(&[("hw_watchdog_action", action.as_str())]), &nothing());
        assert_eq!((hints.watchdog, conditions[0].code()), (None, "watchdog_not_available"));
    }
}

#[test]
fn what_must_not_boot_is_refused() {
    for (key, value, code) in [
        ("architecture", "s390x", "architecture_not_run"),
        ("hypervisor_type", "vmware", "hypervisor_not_kvm"),
        ("vm_mode", "xen", "hypervisor_not_kvm"),
        ("hw_vif_model", "e1000", "vif_model_not_available"),
        ("hw_firmware_type", "uefi", "firmware_not_available"),
        ("os_secure_boot", "required", "secure_boot_not_available"),
        ("hw_mem_encryption", "true", "feature_not_available"),
    ] {
        let (_, conditions) = machine_hints(&properties(&[(key, value)]), &Abilities::x86_64());
        assert_eq!(conditions.len(), 1, "{key}");
        assert_eq!(
            (conditions[0].code(), conditions[0].severity),
            (code, Severity::Refused)
        );
    }
}

#[test]
fn an_amazon_image_names_its_kernel() {
    let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let pairs = [
        ("kernel_id", id),
        ("ramdisk_id", id),
        ("os_command_line", "root=/dev/vda ro"),
    ];
    let (hints, conditions) = machine_hints(&properties(&pairs), &Abilities::x86_64());
    assert_eq!(hints.kernel.unwrap().to_string(), id);
    assert_eq!(hints.ramdisk, hints.kernel);
    assert_eq!(
        (hints.command_line.as_deref(), conditions.len()),
        (Some("root=/dev/vda ro"), 0)
    );
    let (hints, conditions) = machine_hints(&properties(&[("ramdisk_id", id)]), &Abilities::x86_64());
    assert_eq!((hints.ramdisk, conditions[0].code()), (None, "ramdisk_without_kernel"));
}

#[test]
fn windows_gets_a_short_name_and_its_tuning() {
    let (hints, conditions) = machine_hints(&properties(&[("os_type", "windows")]), &everything());
    assert!(hints.windows_tuning && conditions.is_empty());
    assert_eq!(hints.hostname_max, Some(15));
    let (hints, conditions) = machine_hints(&properties(&[("os_type", "windows")]), &Abilities::x86_64());
    assert_eq!(
        (hints.windows_tuning, conditions[0].code()),
        (false, "windows_not_tuned")
    );
}

#[test]
fn numa_nodes_come_in_order() {
    let pairs = [
        ("hw_numa_nodes", "2"),
        ("hw_numa_cpus.0", "0"),
        ("hw_numa_cpus.1", "1-3"),
        ("hw_numa_mem.1", "1024"),
    ];
    let (hints, conditions) = machine_hints(&properties(&pairs), &everything());
    assert!(conditions.is_empty());
    let node = |cpus, memory_mib| NumaNode { cpus, memory_mib };
    assert_eq!(hints.numa, [node(1, None), node(0b1110, Some(1024))]);
    assert_eq!(machine_hints(&properties(&pairs), &nothing()).1.len(), 4);
}

#[test]
fn layouts_divide_the_cpus() {
    let lay = |topology: TopologyHint, cpus| topology.for_cpus(cpus).map(|t| (t.sockets, t.cores, t.threads));
    let none = TopologyHint::default();
    assert_eq!(lay(none, 6), Some((1, 6, 1)));
    let threads = TopologyHint {
        threads: Some(2),
        ..none
    };
    assert_eq!(lay(threads, 6), Some((1, 3, 2)));
    assert_eq!(lay(threads, 5), None);
    let sockets = TopologyHint {
        max_cores: Some(2),
        ..none
    };
    assert_eq!(lay(sockets, 8), Some((4, 2, 1)));
    let desktop = TopologyHint {
        max_sockets: Some(1),
        cores: Some(4),
        ..none
    };
    assert_eq!(lay(desktop, 8), Some((1, 4, 2)));
    assert_eq!(lay(none, 0), None);
}
