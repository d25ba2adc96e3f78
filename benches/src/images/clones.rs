//! Machines' disks from an image of 100 GiB.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use images::{CloneMethod, CloneWay, ImportSource};

use crate::{Figure, Target, median};

/// How large the disk is, bytes.
const DISK_BYTES: u64 = 100 << 30;
/// How many disks are made.
const CLONES: u32 = 1000;

pub(super) async fn figures(dir: &Path) -> Result<Vec<Figure>> {
    let source = dir.join("large.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&source)
        .arg(DISK_BYTES.to_string())
        .status()?;
    ensure!(made.success(), "qemu-img create ended with {made}");
    let store = super::open(&dir.join("clone-store"), "")?;
    let image = super::taken(&store, ImportSource::Upload(Box::new(File::open(source)?)))
        .await?
        .image;
    let base = store.disk_path(&image.digest);
    let before = (base.metadata()?.blocks(), base.metadata()?.len());
    let targets = dir.join("clones");
    std::fs::create_dir(&targets)?;
    let (mut times, mut clone_blocks) = (Vec::new(), 0);
    for index in 0..CLONES {
        let target = targets.join(format!("{index}.qcow2"));
        let begun = Instant::now();
        let cloned = store
            .make_disk(&image.digest, &target, DISK_BYTES, CloneWay::Overlay)
            .await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(cloned.method == CloneMethod::Overlay, "{}", cloned.reason);
        clone_blocks += target.metadata()?.blocks();
    }
    let after = (base.metadata()?.blocks(), base.metadata()?.len());
    store.verify(&image.digest, &|| false)?;
    let grown = after.0.abs_diff(before.0) * 512 + after.1.abs_diff(before.1);
    let each_kib = (clone_blocks * 512 / u64::from(CLONES)) as f64 / 1024.0;
    Ok(vec![
        Figure::new(
            "clone of a 100 GiB image",
            median(&mut times),
            "ms",
            None,
            Target::AtMost(5.0),
        ),
        Figure::new(
            "  growth of it by 1000 clones",
            grown as f64,
            "B",
            None,
            Target::AtMost(0.0),
        ),
        Figure::new("  disk space of a clone", each_kib, "KiB", None, Target::Watched),
    ])
}
