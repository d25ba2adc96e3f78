//! All properties of an image, held against the table and against each other.

use std::collections::BTreeMap;

use super::find::find_key;
use super::value::cpu_list;
use super::{KEY_MAX, PROPERTIES_MAX, RESERVED_PREFIX, TOTAL_MAX, VALUE_MAX};
use crate::fault::{FaultCode, Faults, Note};
use crate::format::DiskFormat;

/// Properties that were checked: values of documented keys are among those the key takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// The value of `key`, if it is set.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Every key and value, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As they are written and stored.
    pub const fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

/// Checks what users wrote. Every fault is added to `faults`, every remark to `notes`; the result is to be used only where
/// no fault was found.
pub fn check_properties(
    written: &BTreeMap<String, String>,
    disk_format: Option<DiskFormat>,
    faults: &mut Faults,
    notes: &mut Vec<Note>,
) -> Properties {
    check_amount(written, faults);
    for (key, value) in written {
        let field = format!("properties.{}", shown(key));
        if check_key(key, &field, faults) {
            check_value(key, value, &field, faults, notes);
        }
    }
    check_scsi(written, faults);
    check_command_line(written, disk_format, faults);
    check_numa(written, faults);
    check_secure_boot(written, faults);
    check_signature(written, faults);
    Properties(written.clone())
}

/// A key in a message: not longer than a line.
fn shown(key: &str) -> String {
    key.chars().take(64).collect()
}

fn check_amount(written: &BTreeMap<String, String>, faults: &mut Faults) {
    if written.len() > PROPERTIES_MAX {
        let message = format!("{} of them; an image has at most {PROPERTIES_MAX}", written.len());
        faults.add(FaultCode::TooManyProperties, "properties", message);
    }
    let total: usize = written.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > TOTAL_MAX {
        let message = format!("{total} bytes of keys and values; an image has at most {TOTAL_MAX}");
        faults.add(FaultCode::PropertiesTooLarge, "properties", message);
    }
}

/// Whether `key` can be a property's key at all.
fn check_key(key: &str, field: &str, faults: &mut Faults) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
    if key.is_empty() || key.len() > KEY_MAX || !key.bytes().all(inner) {
        let message = format!("take 1 to {KEY_MAX} of a-z, A-Z, 0-9, _, -, . and : as a key");
        faults.add(FaultCode::PropertyKeyInvalid, field, message);
        return false;
    }
    if key.starts_with(RESERVED_PREFIX) {
        faults.add(
            FaultCode::PropertyReserved,
            field,
            "the service itself writes it; leave it out",
        );
        return false;
    }
    true
}

fn check_value(key: &str, value: &str, field: &str, faults: &mut Faults, notes: &mut Vec<Note>) {
    if value.len() > VALUE_MAX {
        let message = format!("{} bytes; a value has at most {VALUE_MAX}", value.len());
        faults.add(FaultCode::PropertyTooLong, field, message);
    } else if value.chars().any(char::is_control) {
        faults.add(
            FaultCode::PropertyValueInvalid,
            field,
            "control characters are not taken",
        );
    } else if let Some((spec, _)) = find_key(key) {
        match spec.value.check(value) {
            Ok(()) => notes.extend(spec.value.remark(field, value)),
            Err(message) => faults.add(FaultCode::PropertyValueInvalid, field, message),
        }
    } else if key.starts_with("hw_") || key.starts_with("os_") {
        notes.push(Note {
            code: "property_unknown",
            field: field.to_owned(),
            message: "no such key is documented; it is kept and shapes no machine".to_owned(),
        });
    }
}

/// With a bus of `scsi`, the model must be said too (the reference's rule for `hw_disk_bus` and `hw_cdrom_bus`).
fn check_scsi(written: &BTreeMap<String, String>, faults: &mut Faults) {
    for key in ["hw_disk_bus", "hw_cdrom_bus"] {
        if written.get(key).is_some_and(|bus| bus == "scsi") && !written.contains_key("hw_scsi_model") {
            faults.add(
                FaultCode::PropertiesConflict,
                format!("properties.{key}"),
                "scsi needs hw_scsi_model too; set it to virtio-scsi",
            );
        }
    }
}

/// The command line is defined for Amazon images alone.
fn check_command_line(written: &BTreeMap<String, String>, disk_format: Option<DiskFormat>, faults: &mut Faults) {
    let Some(line) = written.get("os_command_line") else {
        return;
    };
    if !line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        let message = "only printable ASCII and spaces, as kernels take them";
        faults.add(FaultCode::PropertyValueInvalid, "properties.os_command_line", message);
    }
    if !disk_format.is_some_and(DiskFormat::is_amazon) {
        let is = disk_format.map_or("not said", DiskFormat::as_str);
        faults.add(
            FaultCode::PropertiesConflict,
            "properties.os_command_line",
            format!("only images of disk format aki, ari or ami have one, and this one's is {is}"),
        );
    }
}

/// Nodes are numbered below `hw_numa_nodes`, and a vCPU is in one of them.
fn check_numa(written: &BTreeMap<String, String>, faults: &mut Faults) {
    let nodes = written.get("hw_numa_nodes").and_then(|text| super::number(text));
    let mut taken = 0_u64;
    for (key, value) in written {
        let Some((spec, Some(index))) = find_key(key) else {
            continue;
        };
        let field = format!("properties.{key}");
        if nodes.is_none_or(|nodes| index >= nodes) {
            let message = format!("there is no node {index}; set hw_numa_nodes to at least {}", index + 1);
            faults.add(FaultCode::PropertiesConflict, field.clone(), message);
        }
        if spec.key == "hw_numa_cpus" {
            let cpus = cpu_list(value).unwrap_or(0);
            if taken & cpus != 0 {
                let message = format!("vCPU {} is in another node already", (taken & cpus).trailing_zeros());
                faults.add(FaultCode::PropertiesConflict, field, message);
            }
            taken |= cpus;
        }
    }
}

/// Secure boot is a matter of UEFI.
fn check_secure_boot(written: &BTreeMap<String, String>, faults: &mut Faults) {
    let is = |key: &str, value: &str| written.get(key).is_some_and(|text| text == value);
    if is("os_secure_boot", "required") && is("hw_firmware_type", "bios") {
        faults.add(
            FaultCode::PropertiesConflict,
            "properties.os_secure_boot",
            "a BIOS has no secure boot; set hw_firmware_type to uefi or leave it out",
        );
    }
}

/// The four parts of a signature are of use together only.
fn check_signature(written: &BTreeMap<String, String>, faults: &mut Faults) {
    const PARTS: [&str; 4] = [
        "img_signature",
        "img_signature_certificate_uuid",
        "img_signature_hash_method",
        "img_signature_key_type",
    ];
    let there = PARTS.iter().filter(|key| written.contains_key(**key)).count();
    if there == 0 || there == PARTS.len() {
        return;
    }
    for key in PARTS.iter().filter(|key| !written.contains_key(**key)) {
        faults.add(
            FaultCode::PropertiesConflict,
            format!("properties.{key}"),
            "missing, and the signature can not be checked without it",
        );
    }
}
