//! Figures of whole images: opening a large one, converting one.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::files::Files;
use super::process::{Engine, Load, opened, timed};
use crate::figure::{Figure, Target, median};

pub(super) fn figures(files: &Files, rounds: u32, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if wanted("open 1 TiB") {
        figures.extend(opening(files, rounds)?);
    }
    if wanted("convert qcow2 to raw") {
        figures.push(converting(files, rounds)?);
    }
    Ok(figures)
}

fn opening(files: &Files, rounds: u32) -> Result<Vec<Figure>> {
    let image = files.path("huge.qcow2");
    let load = Load {
        image: image.clone(),
        format: "qcow2".to_owned(),
        count: 1,
        depth: 1,
        bytes: 4096,
        step: 4096,
        write: false,
    };
    let (mut seconds, mut bytes, mut whole, mut peer) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let took = opened(&image)?;
        seconds.push(took.seconds);
        bytes.push(took.opening_bytes);
        whole.push(took.whole_seconds);
        peer.push(Engine::QemuUring.run(&load)?.whole_seconds);
    }
    let peer = median(&mut peer) * 1e3;
    Ok(vec![
        Figure::new(
            "open 1 TiB and read 4k",
            median(&mut seconds) * 1e3,
            "ms",
            None,
            Target::AtMost(5.0),
        ),
        Figure::new(
            "  resident memory of it",
            median(&mut bytes) / f64::from(1 << 20),
            "MiB",
            None,
            Target::AtMost(2.0),
        ),
        Figure::new(
            "  whole process",
            median(&mut whole) * 1e3,
            "ms",
            Some(("qemu-img", peer)),
            Target::FasterThanPeer(1.0),
        ),
    ])
}

/// Both sync the target at the end. What was written before, by whoever it was, is written out first: it would take its share of the
/// disk from whichever side comes next. The best round of each counts, since where this host is itself a guest, up to a second goes into
/// memory that its hypervisor has to find again, and to whose account is chance.
fn converting(files: &Files, rounds: u32) -> Result<Figure> {
    let (from, to) = (files.path("kept.qcow2"), files.path("converted.raw"));
    files.warm("kept.qcow2")?;
    let (mut ours, mut theirs) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..=2 * rounds {
        let _ = fs::remove_file(&to);
        rustix::fs::sync();
        let mut karat = Command::new(std::env::current_exe()?);
        let karat = timed(karat.arg("convert").arg(&from).arg(&to))?;
        let _ = fs::remove_file(&to);
        rustix::fs::sync();
        let mut qemu = Command::new("qemu-img");
        qemu.args(["convert", "-t", "writeback", "-f", "qcow2", "-O", "raw"]);
        let qemu = timed(qemu.arg(&from).arg(&to))?;
        ours = ours.min(karat.whole_seconds);
        theirs = theirs.min(qemu.whole_seconds);
    }
    let _ = fs::remove_file(&to);
    Ok(Figure::new(
        "convert qcow2 to raw, 512 MiB",
        ours * 1e3,
        "ms",
        Some(("qemu-img", theirs * 1e3)),
        Target::FasterThanPeer(1.5),
    ))
}
