//! Every example under `api/examples` is what its name says, whole and without a field that does not exist.

use std::path::Path;

use api_types::{
    BootSource, BootSourceWish, DiskLimits, DiskMirror, DiskWish, Event, Image, ImageAccepted, ImageCache, ImageCreate,
    ImagePatch, ImageStoreList, Metadef, Operation, ProblemBody, StopRequest, Upload, UploadWish, Vm, VmSpec, Volume,
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

#[test]
fn examples_are_what_they_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../api/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let kind = [
            "volume-wish",
            "volume-resize",
            "volume-check-request",
            "volume-convert",
            "volume-measure-request",
            "volume-accepted",
            "volume",
            "disk-wish",
            "disk-mirror",
            "disk-limits",
            "image-pulled",
            "image-pull",
            "image-create",
            "image-patch",
            "image-cache",
            "image-stores",
            "boot-source-wish",
            "boot-source",
            "upload-wish",
            "upload",
            "metadef",
            "vm-spec",
            "stop-request",
            "operation",
            "event",
            "problem",
            "image",
            "vm",
        ]
        .into_iter()
        .find(|kind| name.starts_with(kind));
        let result = match kind {
            Some("image-cache") => same::<ImageCache>(&text),
            Some("image-stores") => same::<ImageStoreList>(&text),
            Some("volume-wish") => same::<VolumeWish>(&text),
            Some("volume-resize") => same::<VolumeResize>(&text),
            Some("volume-check-request") => same::<VolumeCheckRequest>(&text),
            Some("volume-convert") => same::<VolumeConvert>(&text),
            Some("volume-measure-request") => same::<VolumeMeasureRequest>(&text),
            Some("volume-accepted") => same::<VolumeAccepted>(&text),
            Some("volume") => same::<Volume>(&text),
            Some("disk-mirror") => same::<DiskMirror>(&text),
            Some("disk-limits") => same::<DiskLimits>(&text),
            Some("disk-wish") => same::<DiskWish>(&text),
            Some("image-pulled") => same::<ImageAccepted>(&text),
            Some("image-pull" | "image-create") => same::<ImageCreate>(&text),
            Some("image-patch") => same::<ImagePatch>(&text),
            Some("boot-source-wish") => same::<BootSourceWish>(&text),
            Some("boot-source") => same::<BootSource>(&text),
            Some("upload-wish") => same::<UploadWish>(&text),
            Some("upload") => same::<Upload>(&text),
            Some("metadef") => same::<Metadef>(&text),
            Some("vm-spec") => same::<VmSpec>(&text),
            Some("stop-request") => same::<StopRequest>(&text),
            Some("operation") => same::<Operation>(&text),
            Some("event") => same::<Event>(&text),
            Some("problem") => same::<ProblemBody>(&text),
            Some("image") => same::<Image>(&text),
            Some("vm") => same::<Vm>(&text),
            _ => Err("its name says no kind; see this test".to_owned()),
        };
        assert_eq!(result, Ok(()), "{name}");
        seen += 1;
    }
    assert!(seen >= 31, "only {seen} examples");
}
