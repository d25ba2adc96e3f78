//! What has to hold for an image that an engine has changed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use disk::{Disk, ExtentKind};
use serde_json::Value;

use crate::header::{self, Features};
use crate::kind::{Extra, Kind};
use crate::make::{Made, UNKNOWN_EXTENSION, unknown_data};
use crate::tools;
use crate::transfer::{difference, read_all};

/// How the engine let go of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It was closed: nothing is left to mend.
    Clean,
    /// Flushed and dropped: clusters may have leaked, lazy refcounts may be wrong.
    Unclean,
}

/// What of `qemu-img info` must not change.
pub fn features(image: &Path) -> Result<Value> {
    let mut info = tools::info(image)?;
    let mut kept = serde_json::Map::new();
    for name in [
        "cluster-size",
        "backing-filename",
        "backing-filename-format",
        "full-backing-filename",
        "encrypted",
    ] {
        if let Some(value) = info.get(name) {
            kept.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(Value::Array(snapshots)) = info.get("snapshots") {
        kept.insert("snapshots".to_owned(), Value::from(snapshots.len()));
    }
    let data = info.pointer_mut("/format-specific/data").and_then(Value::as_object_mut);
    for (name, value) in data.context("qemu-img info tells no features")? {
        if name != "bitmaps" && name != "corrupt" {
            kept.insert(name.clone(), value.take());
        }
    }
    Ok(Value::Object(kept))
}

/// Does the image, which nobody has open, hold the model's contents and all that was in it before? `leaks` is what earlier unclean
/// stops may have left, and learns what this one has.
pub fn image(kind: &Kind, made: &Made, contents: &[u8], (stop, leaks): (Stop, &mut u64)) -> Result<()> {
    let top = made.stack.top();
    if stop == Stop::Unclean && kind.lazy() && header::is_dirty(top)? {
        // The check would find what the dirty bit announces; the next opening mends it.
        *leaks = u64::MAX;
        return Ok(());
    }
    let checked = tools::check(top)?;
    if checked.corruptions > 0 || (stop == Stop::Clean && checked.leaks > *leaks) {
        bail!("{} leaks before; {}", *leaks, tools::check_words(top));
    }
    *leaks = checked.leaks;
    let raw = top.with_file_name("model.raw");
    fs::write(&raw, contents)?;
    tools::compare(top, &raw)?;
    if kind.has(Extra::DataFileRaw) {
        let data = made.stack.data_file.as_deref().context("no data file")?;
        let alone = fs::read(data)?;
        // It may be longer, by a part of a cluster that nobody sees.
        let (disk, rest) = alone.split_at_checked(contents.len()).unwrap_or((&alone, &[]));
        if let Some(words) = difference(contents, disk) {
            bail!("the data file is no raw image of the disk: {words}");
        }
        ensure!(rest.len() < 1 << 21, "the data file has {} bytes too many", rest.len());
    }
    snapshots(made)?;
    extras(kind, top)
}

fn snapshots(made: &Made) -> Result<()> {
    let raw = made.stack.top().with_file_name("snapshot.raw");
    for (name, before) in &made.snapshots {
        tools::snapshot_to_raw(made.stack.top(), name, &raw)?;
        // QEMU reads a snapshot in the size that the disk has now.
        let now = fs::read(&raw)?;
        if let Some(words) = difference(before, now.get(..before.len()).unwrap_or(&now)) {
            bail!("the snapshot {name} has changed: {words}");
        }
    }
    Ok(())
}

fn extras(kind: &Kind, top: &Path) -> Result<()> {
    for extra in &kind.extras {
        match extra {
            Extra::UnknownExtension(len) => {
                let found = header::extension(top, UNKNOWN_EXTENSION)?;
                ensure!(
                    found.as_ref() == Some(&unknown_data(*len)),
                    "the unknown header extension is now {found:?}"
                );
            }
            Extra::UnknownCompatible => {
                let bits = header::features(top, Features::Compatible)?;
                ensure!(bits & 1 << 62 != 0, "an unknown compatible feature bit is gone");
            }
            Extra::UnknownAutoclear => {
                let bits = header::features(top, Features::Autoclear)?;
                ensure!(bits & 1 << 62 == 0, "an unknown autoclear bit outlived a change");
            }
            Extra::Bitmap(follows) => bitmap(top, *follows)?,
            _ => {}
        }
    }
    Ok(())
}

/// A bitmap that should follow writes must say that it did not; one that is idle must be as it was.
fn bitmap(top: &Path, follows: bool) -> Result<()> {
    let info = tools::info(top)?;
    let bitmaps = info.pointer("/format-specific/data/bitmaps").and_then(Value::as_array);
    let Some(found) = bitmaps.and_then(|bitmaps| bitmaps.first()) else {
        bail!("the bitmap is gone");
    };
    let flags = found.get("flags").map(Value::to_string).unwrap_or_default();
    let in_use = flags.contains("in-use");
    ensure!(
        in_use == follows,
        "a bitmap that {} writes has the flags {flags} after changes",
        if follows { "follows" } else { "ignores" }
    );
    Ok(())
}

/// Does the open disk read as the model, and tell no piece zero that is not?
pub async fn disk(disk: &Arc<dyn Disk>, contents: &[u8]) -> Result<()> {
    let found = read_all(disk).await?;
    if let Some(words) = difference(contents, &found) {
        bail!("the disk differs from the model: {words}");
    }
    let io = disk.open_queue()?;
    let (mut at, size) = (0_u64, contents.len() as u64);
    while at < size {
        let extents = io.extents(at, size - at).await?;
        ensure!(!extents.is_empty(), "no extents at {at}");
        for extent in extents {
            ensure!(
                extent.offset == at && extent.len > 0 && extent.end() <= size,
                "extent {extent:?} does not follow {at}"
            );
            let piece = contents.get(usize::try_from(at)?..usize::try_from(extent.end())?);
            let zero = piece.is_some_and(|piece| piece.iter().all(|&byte| byte == 0));
            ensure!(
                extent.kind == ExtentKind::Data || zero,
                "extent {extent:?} is said to be zero and is not"
            );
            at = extent.end();
        }
    }
    Ok(())
}
