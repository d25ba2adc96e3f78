//! Whether a volume that is asked for can be, as far as its wish alone tells.

use api_types::{Preallocation, VolumeSource, VolumeWish};
use spec::{DiskFormat, Name, Problems, VolumeId};

/// Volumes are made of sectors, bytes (virtio 1.2 §5.2.4).
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Largest volume, bytes: what QEMU reads of a qcow2 image with the default cluster, far beyond any file system here.
pub(crate) const SIZE_MAX: u64 = 1 << 46;
/// Clusters of qcow2 images, bytes (QEMU `docs/interop/qcow2.txt`: `cluster_bits` from 9, and no more than 21).
const CLUSTER_SIZES: std::ops::RangeInclusive<u64> = 512..=2 << 20;
/// Characters of a SHA-256 in hexadecimal.
const SHA256_DIGITS: usize = 64;

/// Notes everything that is wrong.
pub(crate) fn check_wish(wish: &VolumeWish, problems: &mut Problems) {
    problems.take("name", wish.name.parse::<Name>());
    check_name::<VolumeId>(&wish.name, problems);
    if let Some(size) = wish.size {
        check_size(size.bytes(), problems);
    }
    match &wish.source {
        VolumeSource::Blank {} if wish.size.is_none() => {
            problems.add("size", "needed for a volume that is filled with nothing");
        }
        VolumeSource::Image { image, .. } if image.trim().is_empty() => {
            problems.add("source.image", "empty; name a digest or a reference");
        }
        VolumeSource::Volume { volume } if volume.trim().is_empty() => {
            problems.add("source.volume", "empty; name a volume");
        }
        VolumeSource::Upload { sha256: Some(digits) } if !is_sha256(digits) => {
            problems.add("source.sha256", "take 64 hexadecimal digits, as sha256sum prints them");
        }
        _ => {}
    }
    check_form(wish, problems);
}

/// Notes a name that could be the id of another thing of its kind: what is asked of either would be done to the wrong one.
pub(crate) fn check_name<Id: std::str::FromStr>(name: &str, problems: &mut Problems) {
    if name.parse::<Id>().is_ok() {
        problems.add("name", format_args!("{name:?} looks like an id; take another one"));
    }
}

/// Notes what is wrong with a size.
pub(crate) fn check_size(bytes: u64, problems: &mut Problems) {
    if bytes == 0 || bytes > SIZE_MAX {
        problems.add("size", "take 512 to 64Ti");
    } else if !bytes.is_multiple_of(SECTOR_BYTES) {
        problems.add("size", format_args!("{bytes} is no multiple of {SECTOR_BYTES} bytes"));
    }
}

fn check_form(wish: &VolumeWish, problems: &mut Problems) {
    let default = match wish.source {
        VolumeSource::Blank {} => Some(DiskFormat::Raw),
        VolumeSource::Image { .. } => Some(DiskFormat::Qcow2),
        VolumeSource::Volume { .. } | VolumeSource::Upload { .. } => None,
    };
    let is_raw = wish.format.or(default) == Some(DiskFormat::Raw);
    if let Some(size) = wish.cluster_size {
        if is_raw {
            problems.add("cluster_size", "a raw volume has no clusters; leave it out");
        } else if !size.bytes().is_power_of_two() || !CLUSTER_SIZES.contains(&size.bytes()) {
            problems.add(
                "cluster_size",
                format_args!("{size}; take a power of two from 512 to 2Mi"),
            );
        }
    }
    if is_raw && wish.preallocation == Preallocation::Metadata {
        problems.add(
            "preallocation",
            "a raw volume has no metadata; take off, falloc or full",
        );
    }
    if wish.compressed {
        if is_raw {
            problems.add("compressed", "a raw volume can not be compressed; take format qcow2");
        }
        if !wish.preallocation.is_off() {
            problems.add(
                "preallocation",
                "what is compressed takes its space as it is written; take off",
            );
        }
        if matches!(wish.source, VolumeSource::Blank {}) {
            problems.add("compressed", "nothing is copied into a blank volume; leave it out");
        }
    }
    if let VolumeSource::Image { copy: false, .. } = wish.source
        && !is_raw
        && !wish.compressed
        && !wish.preallocation.is_off()
    {
        problems.add(
            "preallocation",
            "a clone shares blocks with its image; take off, or set source.copy",
        );
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == SHA256_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(json: &str) -> Vec<String> {
        let mut problems = Problems::new();
        check_wish(&serde_json::from_str(json).unwrap(), &mut problems);
        problems.list().iter().map(|problem| problem.field.clone()).collect()
    }

    #[test]
    fn what_is_whole_passes() {
        for json in [
            r#"{"name": "a", "size": "1Gi"}"#,
            r#"{"name": "a", "size": 512, "format": "qcow2", "cluster_size": "512", "preallocation": "metadata"}"#,
            r#"{"name": "a", "source": {"kind": "image", "image": "debian:12"}}"#,
            r#"{"name": "a", "source": {"kind": "image", "image": "x", "copy": true}, "preallocation": "full"}"#,
            r#"{"name": "a", "source": {"kind": "volume", "volume": "b"}, "format": "qcow2", "compressed": true}"#,
            r#"{"name": "a", "source": {"kind": "upload"}}"#,
        ] {
            assert_eq!(wrong(json), [] as [String; 0], "{json}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        assert_eq!(
            wrong(r#"{"name": "A", "size": 100, "cluster_size": "64Ki", "preallocation": "metadata"}"#),
            ["name", "size", "cluster_size", "preallocation"]
        );
        assert_eq!(wrong(r#"{"name": "a"}"#), ["size"]);
        assert_eq!(
            wrong(r#"{"name": "00000000-0000-4000-8000-000000000001", "size": 512}"#),
            ["name"]
        );
        assert_eq!(wrong(r#"{"name": "a", "size": "65Ti"}"#), ["size"]);
        assert_eq!(
            wrong(r#"{"name": "a", "size": 512, "format": "qcow2", "cluster_size": "3Ki"}"#),
            ["cluster_size"]
        );
        assert_eq!(
            wrong(r#"{"name": "a", "source": {"kind": "upload", "sha256": "x"}}"#),
            ["source.sha256"]
        );
        assert_eq!(
            wrong(r#"{"name": "a", "source": {"kind": "image", "image": "x"}, "preallocation": "full"}"#),
            ["preallocation"]
        );
    }

    #[test]
    fn only_what_is_copied_into_qcow2_is_compressed() {
        let copy = r#""name": "a", "source": {"kind": "volume", "volume": "b"}, "compressed": true"#;
        assert_eq!(wrong(&format!("{{{copy}, \"format\": \"qcow2\"}}")), [] as [String; 0]);
        assert_eq!(wrong(&format!("{{{copy}, \"format\": \"raw\"}}")), ["compressed"]);
        assert_eq!(
            wrong(&format!("{{{copy}, \"preallocation\": \"full\"}}")),
            ["preallocation"]
        );
        assert_eq!(
            wrong(r#"{"name": "a", "size": 512, "format": "qcow2", "compressed": true}"#),
            ["compressed"]
        );
    }

    #[test]
    fn unknown_fields_are_refused_at_every_level() {
        for json in [
            r#"{"name": "a", "sizes": 1}"#,
            r#"{"name": "a", "source": {"kind": "blank", "image": "x"}}"#,
            r#"{"name": "a", "source": {"kind": "url"}}"#,
        ] {
            assert!(serde_json::from_str::<VolumeWish>(json).is_err(), "{json}");
        }
    }
}
