//! What is measured.

use anyhow::Result;

use super::files::{COMPRESSED_BYTES, DATA_BYTES, Files};
use super::process::{Engine, Load};
use super::whole;
use crate::figure::{Figure, Target, median};

/// One load, and what is expected of it.
struct Case {
    name: &'static str,
    /// The image; none: a fresh one for each measurement.
    image: Option<&'static str>,
    count: u64,
    depth: u32,
    bytes: u32,
    step: u64,
    write: bool,
    target: f64,
    /// Is it held against the same load on a raw image?
    beside_raw: bool,
}

/// What one case gave, seconds per request.
struct Measured {
    karat: f64,
    karat_cpu: f64,
    peer: (&'static str, f64),
    peer_cpu: f64,
    /// Karat with the same load on a raw image, in the same rounds.
    raw: Option<f64>,
}

/// As random to caches as random: a prime number of blocks.
const fn scattered(bytes: u32) -> u64 {
    bytes as u64 * 7919
}

const fn case(name: &'static str, image: &'static str, (count, depth, bytes): (u64, u32, u32)) -> Case {
    Case {
        name,
        image: Some(image),
        count,
        depth,
        bytes,
        step: scattered(bytes),
        write: false,
        target: 1.0,
        beside_raw: false,
    }
}

impl Case {
    const fn writes(mut self) -> Self {
        self.write = true;
        self
    }

    const fn at_least(mut self, target: f64) -> Self {
        self.target = target;
        self
    }

    const fn step(mut self, step: u64) -> Self {
        self.step = step;
        self
    }

    const fn beside_raw(mut self) -> Self {
        self.beside_raw = true;
        self
    }

    const fn fresh(mut self) -> Self {
        self.image = None;
        self
    }
}

const MIB: u32 = 1 << 20;

/// Every load. Names are unique.
const CASES: &[Case] = &[
    case("qcow2: 4k random read, depth 1", "mapped.qcow2", (100_000, 1, 4096)).beside_raw(),
    case("raw: 4k random read, depth 32", "data.raw", (300_000, 32, 4096)).at_least(1.3),
    case("qcow2: 4k random read, depth 32", "mapped.qcow2", (300_000, 32, 4096))
        .beside_raw()
        .at_least(1.3),
    case("qcow2: 4k random write, depth 1", "mapped.qcow2", (60_000, 1, 4096))
        .beside_raw()
        .writes(),
    case("raw: 4k random write, depth 32", "data.raw", (120_000, 32, 4096))
        .writes()
        .at_least(1.3),
    case("qcow2: 4k random write, depth 32", "mapped.qcow2", (120_000, 32, 4096))
        .beside_raw()
        .writes()
        .at_least(1.3),
    case("qcow2: 1M sequential read, depth 4", "mapped.qcow2", (1024, 4, MIB)).step(MIB as u64),
    case("qcow2: 1M sequential write, depth 4", "mapped.qcow2", (512, 4, MIB))
        .step(MIB as u64)
        .writes(),
    case("qcow2: 64k allocating write, depth 1", "", (2048, 1, 65_536))
        .fresh()
        .writes()
        .step(65_536),
    case("qcow2: 64k allocating write, depth 32", "", (2048, 32, 65_536))
        .fresh()
        .writes()
        .at_least(1.3),
    case("qcow2: 4k allocating write, depth 32", "", (4096, 32, 4096))
        .fresh()
        .writes()
        .step(65_536 * 79)
        .at_least(1.3),
    case(
        "qcow2: 64k compressed read, depth 1",
        "compressed.qcow2",
        (2048, 1, 65_536),
    ),
    case(
        "qcow2: 64k compressed read, depth 32",
        "compressed.qcow2",
        (2048, 32, 65_536),
    )
    .at_least(1.3),
    case(
        "qcow2: 4k read from backing, depth 1",
        "overlay.qcow2",
        (100_000, 1, 4096),
    ),
    case(
        "qcow2: 4k read from backing, depth 32",
        "overlay.qcow2",
        (300_000, 32, 4096),
    )
    .at_least(1.3),
    // 17 slices of L2 of 4 KiB: each of the 32,768 slices once, neighbours in different tables.
    case("qcow2: 4k read, L2 miss, depth 1", "huge.qcow2", (32_768, 1, 4096)).step(17 * (32 << 20)),
];

/// Measures all, in `rounds` rounds in which the engines take turns.
pub fn figures(files: &Files, rounds: u32, only: Option<&str>, mut tell: impl FnMut(&Figure)) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        let measured = measure(files, case, rounds)?;
        let us = 1e6;
        let mut found = vec![
            Figure::new(
                case.name,
                measured.karat * us,
                "us",
                Some((measured.peer.0, measured.peer.1 * us)),
                Target::FasterThanPeer(case.target),
            ),
            Figure::new(
                "  processor time of it",
                measured.karat_cpu * us,
                "us",
                Some((measured.peer.0, measured.peer_cpu * us)),
                Target::Watched,
            ),
        ];
        if let Some(raw) = measured.raw {
            let raw = Some(("karat-raw", raw * us));
            let target = Target::FasterThanPeer(0.9);
            found.push(Figure::new("  share of raw", measured.karat * us, "us", raw, target));
        }
        found.iter().for_each(&mut tell);
        figures.extend(found);
    }
    for figure in whole::figures(files, rounds, wanted)? {
        tell(&figure);
        figures.push(figure);
    }
    Ok(figures)
}

fn measure(files: &Files, case: &Case, rounds: u32) -> Result<Measured> {
    warm(files, case)?;
    let engines = [Engine::Karat, Engine::PEERS[0], Engine::PEERS[1]];
    let mut seconds: [Vec<f64>; 3] = Default::default();
    let mut cpu: [Vec<f64>; 3] = Default::default();
    let mut raw = Vec::new();
    // The first round only brings everything into caches.
    for round in 0..=rounds {
        // Just before the same on qcow2, from which it differs by little.
        if case.beside_raw {
            let load = Load {
                image: files.path("data.raw"),
                format: "raw".to_owned(),
                ..load(files, case)?
            };
            let took = Engine::Karat.run(&load)?;
            if round > 0 {
                raw.push(took.seconds / load.count as f64);
            }
        }
        for ((engine, seconds), cpu) in engines.iter().zip(&mut seconds).zip(&mut cpu) {
            let load = load(files, case)?;
            let took = engine.run(&load)?;
            if round > 0 {
                seconds.push(took.seconds / load.count as f64);
                cpu.push(took.cpu_seconds / load.count as f64);
            }
        }
    }
    let [karat, uring, threads] = seconds.map(|mut values| median(&mut values));
    let [karat_cpu, uring_cpu, threads_cpu] = cpu.map(|mut values| median(&mut values));
    // The peer is the better of the two.
    let (peer, peer_cpu) = if uring <= threads {
        ((Engine::QemuUring.name(), uring), uring_cpu)
    } else {
        ((Engine::QemuThreads.name(), threads), threads_cpu)
    };
    Ok(Measured {
        karat,
        karat_cpu,
        peer,
        peer_cpu,
        raw: case.beside_raw.then(|| median(&mut raw)),
    })
}

/// Brings what a case reads into the page cache.
fn warm(files: &Files, case: &Case) -> Result<()> {
    if case.beside_raw {
        files.warm("data.raw")?;
    }
    match case.image {
        // Fresh, or mostly holes.
        None | Some("huge.qcow2") => Ok(()),
        Some("overlay.qcow2") => files.warm("mapped.qcow2"),
        Some(name) => files.warm(name),
    }
}

fn load(files: &Files, case: &Case) -> Result<Load> {
    let image = match case.image {
        Some(name) => files.path(name),
        None => files.fresh(DATA_BYTES)?,
    };
    let size = match case.image {
        Some("compressed.qcow2") => COMPRESSED_BYTES,
        Some("huge.qcow2") => 1 << 40,
        _ => DATA_BYTES,
    };
    let format = if image.extension().is_some_and(|end| end == "raw") {
        "raw"
    } else {
        "qcow2"
    };
    Ok(Load {
        image,
        format: format.to_owned(),
        count: case.count,
        depth: case.depth,
        bytes: case.bytes,
        step: case.step % size,
        write: case.write,
    })
}
