//! The catalogue that is shipped, one that is wrong, and one that changes.

use std::path::{Path, PathBuf};

use super::*;
use crate::property::{ValueRule, find_key, known_keys};

fn shipped_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/metadefs.d")
}

fn shipped() -> Catalogue {
    let (catalogue, problems) = Catalogue::read(&[shipped_dir()]);
    assert!(problems.is_empty(), "{problems:?}");
    catalogue
}

fn space(text: &str) -> Namespace {
    toml::from_str(text).unwrap()
}

#[test]
fn what_is_shipped_agrees_with_the_table_of_keys() {
    let catalogue = shipped();
    for spec in known_keys() {
        let key = if spec.indexed {
            format!("{}.0", spec.key)
        } else {
            spec.key.to_owned()
        };
        let definitions: Vec<_> = catalogue.definitions("image", &key).collect();
        assert_eq!(definitions.len(), 1, "{key}");
        let property = definitions[0].1;
        let values: Vec<_> = property.values.iter().map(String::as_str).collect();
        match spec.value {
            ValueRule::Choice(["true", "false"]) => assert_eq!(property.kind, MetadefType::Boolean, "{key}"),
            ValueRule::Choice(expected) => assert_eq!(values, expected, "{key}"),
            ValueRule::Integer { min, max } => {
                assert_eq!(
                    (property.minimum, property.maximum),
                    (Some(min.into()), Some(max.into())),
                    "{key}"
                );
            }
            ValueRule::Text { max } => assert_eq!(property.max_length, Some(max), "{key}"),
            ValueRule::Uuid | ValueRule::ImageId => assert_eq!(property.max_length, Some(36), "{key}"),
            ValueRule::CpuList | ValueRule::OsDistro => assert_eq!(property.min_length, Some(1), "{key}"),
        }
    }
    for space in catalogue.for_resource("image") {
        assert!(space.protected);
        for property in space.all_properties() {
            assert!(
                find_key(&property.name).is_some(),
                "{} is no documented key",
                property.name
            );
        }
    }
    assert_eq!(catalogue.for_resource("vm").count(), 0);
}

#[test]
fn values_are_held_against_definitions() {
    let catalogue = shipped();
    assert_eq!(catalogue.value("image", "hw_disk_bus", "virtio"), Verdict::Fits);
    assert_eq!(catalogue.value("image", "colour", "red"), Verdict::Undefined);
    assert_eq!(catalogue.value("volume", "hw_disk_bus", "sata"), Verdict::Undefined);
    let Verdict::Wrong { namespace, message } = catalogue.value("image", "hw_disk_bus", "sata") else {
        panic!("taken")
    };
    assert_eq!(
        (namespace.as_str(), message.as_str()),
        ("karat-devices", "take one of scsi, virtio, ide, usb")
    );
}

#[test]
fn every_type_has_its_values() {
    let space = space(
        r#"
        namespace = "n"
        [[resource_types]]
        name = "volume"
        prefix = "x:"
        [[properties]]
        name = "count"
        type = "integer"
        minimum = -1
        maximum = 3
        [[properties]]
        name = "share"
        type = "number"
        minimum = 0
        [[properties]]
        name = "set"
        type = "array"
        enum = ["a", "b"]
        [[properties]]
        name = "on"
        type = "boolean"
        [[properties]]
        name = "text"
        type = "string"
        min_length = 1
        max_length = 3
        "#,
    );
    let mut catalogue = Catalogue::default();
    catalogue.add(space).unwrap();
    for (key, good, bad) in [
        ("x:count", &["-1", "3"][..], &["4", "-2", "1.0", "", "x"][..]),
        ("x:share", &["0", "0.5", "10"], &["-0.1", "nan", "inf", "1e3", ""]),
        ("x:set", &["a", "a,b"], &["c", "a,", ""]),
        ("x:on", &["true", "false"], &["yes", "True"]),
        ("x:text", &["a", "abc"], &["", "abcd"]),
    ] {
        for value in good {
            assert_eq!(catalogue.value("volume", key, value), Verdict::Fits, "{key}={value}");
        }
        for value in bad {
            assert!(
                matches!(catalogue.value("volume", key, value), Verdict::Wrong { .. }),
                "{key}={value}"
            );
        }
    }
    assert_eq!(catalogue.value("volume", "count", "9"), Verdict::Undefined);
}

#[test]
fn wrong_files_are_all_told_and_take_no_others_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("a.toml", "namespace = \"good\"\n");
    write(
        "b.toml",
        "namespace = \"b\"\n\n[[properties]]\nname = \"p\"\nkind = \"string\"\n",
    );
    write(
        "c.toml",
        "namespace = \"a b\"\n[[tags]]\nname = \"\"\n[[tags]]\nname = \"\"\n",
    );
    write("d.toml", "namespace = \"good\"\n");
    write("e.toml", "namespace = \"broken\n");
    write("ignored.txt", "x");
    let (catalogue, problems) = Catalogue::read(&[dir.path().to_owned(), dir.path().join("missing")]);
    assert_eq!(catalogue.namespaces().count(), 1);
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let told: Vec<_> = told.iter().map(|text| text.rsplit('/').next().unwrap()).collect();
    assert!(told[0].starts_with("b.toml:5: unknown field `kind`"), "{told:?}");
    assert!(told[1].starts_with("c.toml: namespace:"), "{told:?}");
    assert!(
        told[2].starts_with("c.toml: tags[1].name: \"\" is there twice"),
        "{told:?}"
    );
    assert!(
        told.iter()
            .any(|text| text.starts_with("d.toml: namespace \"good\" is in another file")),
        "{told:?}"
    );
    assert!(told.last().unwrap().starts_with("e.toml:1: "), "{told:?}");
}

#[test]
fn a_later_directory_takes_the_place_of_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, "namespace = \"karat-devices\"\ndescription = \"mine\"\n").unwrap();
    let (catalogue, problems) = Catalogue::read(&[shipped_dir(), dir.path().to_owned()]);
    assert!(problems.is_empty());
    assert_eq!(catalogue.namespace("karat-devices").unwrap().description, "mine");
    assert_eq!(catalogue.value("image", "hw_disk_bus", "sata"), Verdict::Undefined);
}

#[test]
fn users_change_their_own_and_never_what_a_file_says() {
    let mut catalogue = shipped();
    let mine = space("namespace = \"mine\"\nprotected = true\n");
    catalogue.add(mine.clone()).unwrap();
    assert_eq!(catalogue.add(mine.clone()).unwrap_err().code(), "metadef_exists");
    assert_eq!(catalogue.remove("mine").unwrap_err().code(), "metadef_protected");
    let mut open = mine.clone();
    open.description = "changed".into();
    assert_eq!(catalogue.replace(open.clone()).unwrap_err().code(), "metadef_protected");
    catalogue
        .replace(Namespace {
            protected: false,
            ..mine
        })
        .unwrap();
    catalogue
        .replace(Namespace {
            protected: false,
            ..open
        })
        .unwrap();
    assert_eq!(catalogue.remove("mine").unwrap().description, "changed");
    assert_eq!(catalogue.remove("mine").unwrap_err().code(), "metadef_unknown");

    let device = catalogue.namespace("karat-devices").unwrap().clone();
    assert_eq!(
        catalogue.remove("karat-devices").unwrap_err().code(),
        "metadef_protected"
    );
    let opened = Namespace {
        protected: false,
        ..device
    };
    assert_eq!(catalogue.replace(opened).unwrap_err().code(), "metadef_protected");
    let bad = space("namespace = \"x\"\n[[resource_types]]\nname = \"toaster\"\n");
    assert_eq!(catalogue.add(bad).unwrap_err().code(), "metadef_invalid");
}

#[test]
fn amounts_are_bounded() {
    let mut catalogue = Catalogue::default();
    for index in 0..NAMESPACES_MAX {
        catalogue.add(space(&format!("namespace = \"n{index}\""))).unwrap();
    }
    assert_eq!(
        catalogue.add(space("namespace = \"one-more\"")).unwrap_err().code(),
        "metadef_limit"
    );
    let mut many = space("namespace = \"n1\"");
    many.tags = (0..=MEMBERS_MAX).map(|n| MetadefTag { name: n.to_string() }).collect();
    assert_eq!(catalogue.replace(many).unwrap_err().code(), "metadef_invalid");
    let mut wrong = space("namespace = \"n1\"");
    wrong.objects = vec![MetadefObject {
        name: "o".into(),
        description: "d".repeat(METADEF_TEXT_MAX + 1),
        required: vec!["p".into()],
        properties: vec![],
    }];
    assert_eq!(wrong.check().unwrap_err().list().len(), 2);
}
