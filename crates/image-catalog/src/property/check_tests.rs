//! What is refused, what is kept, and that all of it is told at once.

use std::collections::BTreeMap;

use super::*;
use crate::fault::{FaultCode, Faults, Note};
use crate::format::DiskFormat;

fn check(pairs: &[(&str, &str)], format: DiskFormat) -> (Faults, Vec<Note>) {
    let written: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let (mut faults, mut notes) = (Faults::new(), Vec::new());
    check_properties(&written, Some(format), &mut faults, &mut notes);
    (faults, notes)
}

fn codes(faults: &Faults) -> Vec<&'static str> {
    faults.list().iter().map(|fault| fault.code.as_str()).collect()
}

#[test]
fn everything_wrong_is_told_at_once() {
    let (faults, notes) = check(
        &[
            ("hw_disk_bus", "sata"),
            ("hw_watchdog_action", "explode"),
            ("os_glance_failed_import", "a"),
            ("kernel_id", "vmlinuz"),
            ("bad key", "x"),
            ("os_distro", "RedHat"),
            ("hw_numa_mem.3", "0"),
            ("hw_brand_new", "1"),
        ],
        DiskFormat::Qcow2,
    );
    let fields: Vec<_> = faults.list().iter().map(|fault| fault.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "properties.bad key",
            "properties.hw_disk_bus",
            "properties.hw_numa_mem.3",
            "properties.hw_watchdog_action",
            "properties.kernel_id",
            "properties.os_distro",
            "properties.os_glance_failed_import",
            "properties.hw_numa_mem.3",
        ]
    );
    assert_eq!(notes.len(), 1);
    assert_eq!(
        (notes[0].code, notes[0].field.as_str()),
        ("property_unknown", "properties.hw_brand_new")
    );
}

#[test]
fn scsi_needs_its_model_s17_18() {
    for key in ["hw_disk_bus", "hw_cdrom_bus"] {
        let (faults, _) = check(&[(key, "scsi")], DiskFormat::Raw);
        assert_eq!(codes(&faults), ["properties_conflict"]);
        let (faults, _) = check(&[(key, "scsi"), ("hw_scsi_model", "virtio-scsi")], DiskFormat::Raw);
        assert!(faults.list().is_empty(), "{faults}");
    }
}

#[test]
fn a_command_line_is_for_amazon_images_s17_19() {
    for format in DiskFormat::ALL {
        let (faults, _) = check(&[("os_command_line", "console=ttyS0")], *format);
        let amazon = matches!(format, DiskFormat::Aki | DiskFormat::Ari | DiskFormat::Ami);
        assert_eq!(faults.list().is_empty(), amazon, "{format}");
    }
}

#[test]
fn a_command_line_is_ascii() {
    let (faults, _) = check(&[("os_command_line", "root=/dev/vdä")], DiskFormat::Ami);
    assert_eq!(codes(&faults), ["property_value_invalid"]);
}

#[test]
fn numa_nodes_are_counted_and_share_no_cpu() {
    let fine = [
        ("hw_numa_nodes", "2"),
        ("hw_numa_cpus.0", "0,1"),
        ("hw_numa_cpus.1", "2-3"),
        ("hw_numa_mem.0", "512"),
    ];
    assert!(check(&fine, DiskFormat::Raw).0.list().is_empty());
    let (faults, _) = check(&[("hw_numa_cpus.0", "0")], DiskFormat::Raw);
    assert!(
        faults.to_string().contains("set hw_numa_nodes to at least 1"),
        "{faults}"
    );
    let (faults, _) = check(
        &[
            ("hw_numa_nodes", "2"),
            ("hw_numa_cpus.0", "0,1"),
            ("hw_numa_cpus.1", "1"),
        ],
        DiskFormat::Raw,
    );
    assert!(faults.to_string().contains("vCPU 1 is in another node"), "{faults}");
}

#[test]
fn free_keys_are_kept_without_a_word() {
    let (faults, notes) = check(&[("owner_team", "db"), ("x:y.z-1", "ü")], DiskFormat::Raw);
    assert!(faults.list().is_empty() && notes.is_empty());
}

#[test]
fn an_incomplete_signature_names_what_is_missing() {
    let (faults, _) = check(
        &[("img_signature", "AAAA"), ("img_signature_key_type", "RSA-PSS")],
        DiskFormat::Raw,
    );
    let fields: Vec<_> = faults.list().iter().map(|fault| fault.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "properties.img_signature_certificate_uuid",
            "properties.img_signature_hash_method"
        ]
    );
    let (faults, _) = check(
        &[("os_secure_boot", "required"), ("hw_firmware_type", "bios")],
        DiskFormat::Raw,
    );
    assert_eq!(codes(&faults), ["properties_conflict"]);
}

#[test]
fn amounts_are_bounded() {
    let many: BTreeMap<_, _> = (0..=PROPERTIES_MAX).map(|n| (format!("k{n}"), String::new())).collect();
    let mut faults = Faults::new();
    check_properties(&many, None, &mut faults, &mut Vec::new());
    assert_eq!(codes(&faults), ["too_many_properties"]);

    let large: BTreeMap<_, _> = (0..20).map(|n| (format!("k{n}"), "v".repeat(VALUE_MAX))).collect();
    let mut faults = Faults::new();
    check_properties(&large, None, &mut faults, &mut Vec::new());
    assert_eq!(codes(&faults), ["properties_too_large"]);

    let (faults, _) = check(&[("k", &"v".repeat(VALUE_MAX + 1)), ("l", "a\0b")], DiskFormat::Raw);
    assert_eq!(codes(&faults), ["property_too_long", "property_value_invalid"]);
    let (faults, _) = check(&[(&"k".repeat(KEY_MAX + 1), "v"), ("", "v")], DiskFormat::Raw);
    assert_eq!(codes(&faults), ["property_key_invalid", "property_key_invalid"]);
    assert_eq!(faults.list()[0].code, FaultCode::PropertyKeyInvalid);
}
