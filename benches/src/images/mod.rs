//! Figures of images: from a registry to a sealed image, next to `skopeo copy`, `tar` and `qemu-img convert` in turns; clones; polls.
//!
//! Either side is a shell that runs its programs one after the other, so that both are timed, and what they read and write is
//! counted, alike. The registry is Debian's, on loopback, and serves both from the page cache.

mod clones;
mod process;
mod served;
mod tracked;

use std::path::Path;

use anyhow::{Context, Result};
use images::{ImportRequest, ImportSource, Imported, Progress, RequestedProof, Settings, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Figure, Target, median};
use process::Took;
use served::Served;

/// What names the peer.
const PEER: &str = "skopeo+qemu-img";
const MIB: f64 = (1 << 20) as f64;

/// How much is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Extent {
    /// Data in the image, MiB; its disk is twice as large.
    #[arg(long, default_value_t = 1024)]
    pub data_mib: u64,
    /// Rounds of each.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
}

/// Measures all in `dir`, which is the caller's to remove.
pub fn figures(dir: &Path, extent: Extent, mut tell: impl FnMut(&Figure)) -> Result<Vec<Figure>> {
    let served = Served::make(dir, extent.data_mib)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=extent.rounds {
        let (karat, peer) = (served.imported_by_karat()?, served.imported_by_peer()?);
        // The first one warms caches.
        if round > 0 {
            ours.push(karat);
            theirs.push(peer);
        }
    }
    let mut figures = imports(&ours, &theirs);
    let runtime = runtime()?;
    figures.push(runtime.block_on(served.polled())?);
    figures.push(runtime.block_on(tracked::figure(&served, dir, extent.rounds))?);
    figures.extend(runtime.block_on(clones::figures(dir))?);
    figures.iter().for_each(&mut tell);
    Ok(figures)
}

fn imports(ours: &[Took], theirs: &[Took]) -> Vec<Figure> {
    let of = |all: &[Took], what: fn(&Took) -> f64| median(&mut all.iter().map(what).collect::<Vec<_>>());
    let figure = |name, unit, what: fn(&Took) -> f64, target| {
        Figure::new(name, of(ours, what), unit, Some((PEER, of(theirs, what))), target)
    };
    let twice = Target::FasterThanPeer(2.0);
    vec![
        figure("container disk to sealed image", "s", |took| took.seconds, twice),
        figure("  processor time of it", "s", |took| took.cpu_seconds, Target::Watched),
        figure(
            "  peak memory of it",
            "MiB",
            |took| took.peak_bytes / MIB,
            Target::AtMost(64.0),
        ),
        figure("  bytes written for it", "MiB", |took| took.written_bytes / MIB, twice),
    ]
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime can be made")
}

/// Karat's side of one import: the image `reference` names, from a registry that speaks plain HTTP, into a new store.
pub fn import(store: &Path, reference: &str) -> Result<()> {
    let store = open(store, reference.split('/').next().unwrap_or_default())?;
    let source = ImportSource::Registry {
        reference: reference.parse()?,
    };
    runtime()?.block_on(taken(&store, source))?;
    Ok(())
}

fn open(root: &Path, registry: &str) -> Result<Store> {
    let settings = Settings {
        root: root.to_path_buf(),
        insecure_registries: vec![registry.to_owned()],
        ..Settings::default()
    };
    Ok(Store::open(settings)?.0)
}

async fn taken(store: &Store, source: ImportSource) -> Result<Imported> {
    let request = ImportRequest {
        source,
        expected: image_formats::Expectations::up_to(256 << 30),
        evidence: RequestedProof::default(),
        trust: std::sync::Arc::default(),
        stores: Vec::new(),
    };
    let (progress, _) = watch::channel(Progress::default());
    Ok(store.import(request, &progress, &CancellationToken::new()).await?)
}
