//! Every example under `api/examples` is what its name says, whole and without a field that does not exist.

use std::path::Path;

use api_types::{
    BootSource, BootSourceWish, DiskLimits, DiskMirror, DiskWish, Event, Image, ImageAccepted, ImageCache, ImageCreate,
    ImagePatch, ImageStoreList, Metadef, Migration, MigrationPatch, MigrationWish, Operation, ProblemBody, Snapshot,
    SnapshotAccepted, SnapshotRestore, SnapshotWish, StopRequest, Upload, UploadWish, Vm, VmSpec, Volume,
    VolumeAccepted, VolumeCheckRequest, VolumeConvert, VolumeMeasureRequest, VolumeResize, VolumeWish,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads `text` as a `T`, and compares what is written back: a field that was not understood would be missing there.
fn same<T: DeserializeOwned + Serialize>(text: &str) -> Result<(), String> {
    let value: T = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (read, written) = (serde_json::from_str::<Value>(text), serde_json::to_value(value));
    covers(
        &written.map_err(|error| error.to_string())?,
        &read.map_err(|error| error.to_string())?,
    )
}

fn covers(written: &Value, read: &Value) -> Result<(), String> {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => read.iter().try_for_each(|(key, value)| {
            let found = written.get(key).ok_or_else(|| format!("{key} is no field"))?;
            covers(found, value).map_err(|error| format!("{key}: {error}"))
        }),
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => written
            .iter()
            .zip(read)
            .try_for_each(|(written, read)| covers(written, read)),
        _ if written == read => Ok(()),
        _ => Err(format!("{read} became {written}")),
    }
}

type Check = fn(&str) -> Result<(), String>;

/// What begins the name of a file, and how such a file is read. The first that fits counts.
const KINDS: &[(&str, Check)] = &[
    ("volume-wish", same::<VolumeWish>),
    ("volume-resize", same::<VolumeResize>),
    ("volume-check-request", same::<VolumeCheckRequest>),
    ("volume-convert", same::<VolumeConvert>),
    ("volume-measure-request", same::<VolumeMeasureRequest>),
    ("volume-accepted", same::<VolumeAccepted>),
    ("volume", same::<Volume>),
    ("disk-wish", same::<DiskWish>),
    ("disk-mirror", same::<DiskMirror>),
    ("disk-limits", same::<DiskLimits>),
    ("image-pulled", same::<ImageAccepted>),
    ("image-pull", same::<ImageCreate>),
    ("image-create", same::<ImageCreate>),
    ("image-patch", same::<ImagePatch>),
    ("image-cache", same::<ImageCache>),
    ("image-stores", same::<ImageStoreList>),
    ("boot-source-wish", same::<BootSourceWish>),
    ("boot-source", same::<BootSource>),
    ("upload-wish", same::<UploadWish>),
    ("upload", same::<Upload>),
    ("metadef", same::<Metadef>),
    ("snapshot-wish", same::<SnapshotWish>),
    ("snapshot-restore", same::<SnapshotRestore>),
    ("snapshot-accepted", same::<SnapshotAccepted>),
    ("snapshot", same::<Snapshot>),
    ("vm-spec", same::<VmSpec>),
    ("stop-request", same::<StopRequest>),
    ("migration-wish", same::<MigrationWish>),
    ("migration-patch", same::<MigrationPatch>),
    ("migration", same::<Migration>),
    ("operation", same::<Operation>),
    ("event", same::<Event>),
    ("problem", same::<ProblemBody>),
    ("image", same::<Image>),
    ("vm", same::<Vm>),
];

#[test]
fn examples_are_what_they_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../api/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let kind = KINDS.iter().find(|(kind, _)| name.starts_with(kind));
        let result = match kind {
            Some((_, check)) => check(&text),
            None => Err("its name says no kind; see this test".to_owned()),
        };
        assert_eq!(result, Ok(()), "{name}");
        seen += 1;
    }
    assert!(seen >= 34, "only {seen} examples");
}
