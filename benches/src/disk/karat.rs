//! Karat's side of a measurement: the library as the machine process uses it.

use std::cell::Cell;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use disk::{Access, DiskIo};
use disk_image::{ConvertOptions, CreateOptions, Image, OpenOptions, Policy, assemble, resolve};
use guestmem::IoBuf;
use spec::DiskFormat;
use uring::{Executor, Ring};

use super::process::Load;

fn format_named(name: &str) -> Result<DiskFormat> {
    match name {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        _ => anyhow::bail!("no format is called {name}"),
    }
}

/// The image's directory and what is below it may hold its backing files.
fn policy(image: &Path, format: DiskFormat, writable: bool) -> Result<Policy> {
    let directory = image.parent().context("an image without a directory")?;
    let mut policy = Policy::within([directory]);
    policy.format = Some(format);
    policy.writable_layers = usize::from(writable);
    Ok(policy)
}

async fn opened(image: &Path, format: DiskFormat, writable: bool) -> Result<Image> {
    let chain = resolve(image, &policy(image, format, writable)?)?;
    let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
    let options = OpenOptions {
        access,
        ..OpenOptions::default()
    };
    Ok(assemble(&chain, &options).await?)
}

/// Does a load; the seconds from the first request to the last answer.
pub fn run(load: &Load) -> Result<f64> {
    let format = format_named(&load.format)?;
    Executor::new(256)?.block_on(async {
        let image = opened(&load.image, format, load.write).await?;
        let io = image.disk().open_queue()?;
        let took = requests(&io, load).await?;
        drop(io);
        image.close().await?;
        Ok(took.as_secs_f64())
    })?
}

/// `depth` tasks that take the next request each whenever they have done one.
async fn requests(io: &Rc<dyn DiskIo>, load: &Load) -> Result<Duration> {
    let size = io.geometry().size_bytes;
    let bytes = u64::from(load.bytes);
    ensure!(size >= bytes, "the disk is smaller than a request");
    let next = Rc::new(Cell::new((0_u64, 0_u64)));
    let ring = Ring::current()?;
    let begun = Instant::now();
    let tasks: Vec<_> = (0..load.depth)
        .map(|_| {
            let (io, next, load) = (Rc::clone(io), Rc::clone(&next), load.clone());
            ring.spawn(async move {
                let mut bufs = vec![IoBuf::heap(load.bytes as usize, 4096)?];
                loop {
                    let (number, offset) = next.get();
                    if number == load.count {
                        return anyhow::Ok(());
                    }
                    let ahead = offset + load.step;
                    next.set((number + 1, if ahead + bytes > size { ahead % size } else { ahead }));
                    let (result, back) = match load.write {
                        true => io.write(offset, bufs).await,
                        false => io.read(offset, bufs).await,
                    };
                    result?;
                    bufs = back;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    Ok(begun.elapsed())
}

/// Opens an image; seconds, and bytes of resident memory it took.
pub fn open(image: &Path) -> Result<(f64, u64)> {
    Executor::new(64)?.block_on(async {
        // Whatever the executor and the first use of each part of this program take is not the image's.
        let before = resident_bytes()?;
        let begun = Instant::now();
        let image = opened(image, DiskFormat::Qcow2, true).await?;
        let io = image.disk().open_queue()?;
        let (read, _) = io.read(0, vec![IoBuf::heap(4096, 4096)?]).await;
        read?;
        let took = begun.elapsed().as_secs_f64();
        let after = resident_bytes()?;
        drop(io);
        image.close().await?;
        Ok((took, after.saturating_sub(before)))
    })?
}

fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.context("no VmRSS")?;
    let kib: u64 = words.split_whitespace().next().context("VmRSS is empty")?.parse()?;
    Ok(kib * 1024)
}

/// Converts to raw.
pub fn convert(from: &Path, to: &Path) -> Result<()> {
    let chain = resolve(from, &policy(from, DiskFormat::Qcow2, false)?)?;
    let size_bytes = disk_image::virtual_size(&chain)?;
    let target = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(to)?;
    disk_image::convert(
        &chain,
        &target,
        &ConvertOptions::to(CreateOptions::raw(size_bytes)),
        &(),
    )?;
    Ok(())
}
