//! Records: what passes, what does not, and that it survives being stored and edited.

use super::record::*;
use super::*;

fn wish(name: &str) -> ImageWish {
    ImageWish {
        name: name.to_owned(),
        ..ImageWish::default()
    }
}

#[test]
fn a_name_is_enough_and_minimums_are_zero_s17_1() {
    let wish: ImageWish = serde_json::from_str(r#"{"name": "debian-12"}"#).unwrap();
    let record = ImageRecord::check(&wish).unwrap().record;
    assert_eq!((record.min_disk_gib(), record.min_ram_mib()), (0, 0));
    assert_eq!(record.visibility(), Visibility::Shared);
    assert!(!record.protected() && !record.hidden());
}

#[test]
fn all_faults_at_once_each_with_its_code() {
    let bad = ImageWish {
        description: "d".repeat(256),
        disk_format: Some("QCOW2".into()),
        container_format: Some("zip".into()),
        architecture: Some("amd64".into()),
        min_disk_gib: u64::MAX,
        min_ram_mib: 1 << 31,
        visibility: Some("secret".into()),
        owner: Some("a\nb".into()),
        tags: [String::new()].into(),
        properties: [("vm_mode".to_owned(), "HVM".to_owned())].into(),
        ..wish("Debian 12")
    };
    let faults = ImageRecord::check(&bad).unwrap_err();
    let told: Vec<_> = faults
        .list()
        .iter()
        .map(|f| (f.field.as_str(), f.code.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("name", "name_invalid"),
            ("description", "text_too_long"),
            ("disk_format", "disk_format_unknown"),
            ("container_format", "container_format_unknown"),
            ("architecture", "architecture_unknown"),
            ("min_disk_gib", "number_out_of_range"),
            ("min_ram_mib", "number_out_of_range"),
            ("visibility", "visibility_unknown"),
            ("owner", "text_invalid"),
            ("tags[0]", "tag_invalid"),
            ("properties.vm_mode", "property_value_invalid"),
        ]
    );
    assert!(faults.to_string().contains("write x86_64"), "{faults}");
}

#[test]
fn unknown_fields_are_refused_by_name() {
    let told = serde_json::from_str::<ImageWish>(r#"{"name": "a", "min_disk": 1}"#).unwrap_err();
    assert!(told.to_string().contains("unknown field `min_disk`"), "{told}");
    let told = serde_json::from_str::<ImageEdit>(r#"{"owner": "me"}"#).unwrap_err();
    assert!(told.to_string().contains("unknown field `owner`"), "{told}");
}

#[test]
fn amazon_formats_go_with_themselves() {
    let of = |disk: &str, container: &str| ImageWish {
        disk_format: Some(disk.into()),
        container_format: Some(container.into()),
        ..wish("a")
    };
    for (disk, container) in [("aki", "aki"), ("qcow2", "bare"), ("raw", "docker"), ("vmdk", "ova")] {
        assert!(ImageRecord::check(&of(disk, container)).is_ok(), "{disk} {container}");
    }
    for (disk, container) in [("aki", "bare"), ("raw", "ami"), ("aki", "ari")] {
        assert_eq!(
            ImageRecord::check(&of(disk, container)).unwrap_err().code(),
            "formats_conflict"
        );
    }
}

#[test]
fn the_architecture_has_two_names_and_one_value() {
    let mut both = wish("a");
    both.properties.insert("architecture".into(), "s390x".into());
    let record = ImageRecord::check(&both).unwrap().record;
    assert_eq!(record.architecture(), Some(Architecture::S390x));
    both.architecture = Some("x86_64".into());
    assert_eq!(ImageRecord::check(&both).unwrap_err().code(), "properties_conflict");

    for edit in [
        r#"{"architecture": "x86_64"}"#,
        r#"{"properties": {"architecture": "x86_64"}}"#,
    ] {
        let edit: ImageEdit = serde_json::from_str(edit).unwrap();
        let edited = record.edited(&edit).unwrap().record;
        assert_eq!(edited.architecture(), Some(Architecture::X86_64));
    }
}

#[test]
fn an_edit_changes_what_it_names_and_is_checked_as_a_whole() {
    let mut first = wish("a");
    first.properties = [
        ("hw_disk_bus", "scsi"),
        ("hw_scsi_model", "virtio-scsi"),
        ("team", "db"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    let record = ImageRecord::check(&first).unwrap().record;
    let edit: ImageEdit = serde_json::from_str(
        r#"{"name": "b", "hidden": true, "properties": {"team": null, "os_type": "linux"}, "tags": ["x"]}"#,
    )
    .unwrap();
    let edited = record.edited(&edit).unwrap().record;
    assert_eq!(edited.name().as_str(), "b");
    assert!(edited.hidden() && edited.tags().contains("x"));
    assert_eq!(edited.properties().get("team"), None);
    assert_eq!(edited.properties().get("hw_disk_bus"), Some("scsi"));

    let edit: ImageEdit = serde_json::from_str(r#"{"properties": {"hw_scsi_model": null}}"#).unwrap();
    assert_eq!(record.edited(&edit).unwrap_err().code(), "properties_conflict");
}

#[test]
fn a_stored_record_reads_the_same_and_is_checked_again() {
    let mut full = wish("a");
    full.properties.insert("os_distro".into(), "debian".into());
    full.tags.insert("lts".into());
    full.owner = Some("root".into());
    let record = ImageRecord::check(&full).unwrap().record;
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<ImageRecord>(&text).unwrap(), record);
    let spoilt = text.replace("debian", "Debian");
    let told = serde_json::from_str::<ImageRecord>(&spoilt).unwrap_err().to_string();
    assert!(told.contains("write debian"), "{told}");
}
