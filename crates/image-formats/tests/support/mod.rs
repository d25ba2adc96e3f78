//! What the tests share: `qemu-img`, and the way an import goes, from any stream to a verdict.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;

use image_formats::inspect::Inspector;
use image_formats::ova::{Ova, OvaError, OvaRules};
use image_formats::{
    Decompress, DecompressError, DecompressLimits, Expectations, Format, Inspection, Packing, Wrapping,
};

/// Whether a program is there; says so if not.
pub fn have(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output();
    let there = found.is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: {program} is not installed");
    }
    there
}

/// Runs a program that has to succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
}

/// `qemu-img create`.
pub fn create(path: &Path, format: &str, options: &str, size: &str) {
    let path = path.to_str().unwrap();
    let mut arguments = vec!["create", "-q", "-f", format];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    arguments.extend([path, size]);
    run("qemu-img", &arguments);
}

/// `qemu-img convert` from raw.
pub fn convert(source: &Path, target: &Path, format: &str, options: &str) {
    let mut arguments = vec!["convert", "-f", "raw", "-O", format];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    arguments.extend([source.to_str().unwrap(), target.to_str().unwrap()]);
    run("qemu-img", &arguments);
}

/// Bytes that do not compress.
pub fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_be_bytes()[1]
    };
    (0..len).map(step).collect()
}

/// What an import allows.
#[derive(Clone)]
pub struct Rules {
    pub expected: Expectations,
    pub unpack: DecompressLimits,
}

impl Rules {
    pub fn new() -> Self {
        Self {
            expected: Expectations::up_to(1 << 40),
            unpack: DecompressLimits {
                ratio_from_bytes: 16 << 20,
                max_output_bytes: 64 << 20,
                ..DecompressLimits::up_to(0)
            },
        }
    }
}

/// A file's verdict, read once from front to back: compression off, looked at, archives opened.
pub fn take(path: &Path, rules: &Rules) -> Result<Inspection, String> {
    let file = File::open(path).unwrap();
    let mut stream = Decompress::new(file, rules.unpack).map_err(|error| error.code().to_owned())?;
    let wrapping = if stream.packing().is_some() {
        Wrapping::Compression
    } else {
        Wrapping::None
    };
    let mut start = Vec::new();
    (&mut stream).take(64 << 10).read_to_end(&mut start).map_err(code)?;
    let mut inspector = Inspector::new(Expectations {
        wrapping,
        ..rules.expected.clone()
    });
    inspector.feed(&start).map_err(|refusal| refusal.code().to_owned())?;
    let format = match inspector.format_so_far() {
        Some(format) => format,
        None => inspector.judge_short().map_err(|refusal| refusal.code().to_owned())?,
    };
    let rest = start.as_slice().chain(stream);
    if format != Format::Packed(Packing::Tar) {
        return push(start.len(), rest, inspector);
    }
    let ova_rules = OvaRules {
        max_disk_bytes: rules.expected.max_bytes,
        require_manifest: false,
    };
    let mut ova = Ova::open(rest, ova_rules).map_err(|error| error.code().to_owned())?;
    let inner = Inspector::new(Expectations {
        claimed: None,
        wrapping: Wrapping::Archive,
        ..rules.expected.clone()
    });
    let inspection = push(0, &mut ova, inner)?;
    ova.finish().map_err(|error| error.code().to_owned())?;
    Ok(inspection)
}

fn push(known: usize, mut stream: impl Read, mut inspector: Inspector) -> Result<Inspection, String> {
    io::copy(&mut (&mut stream).take(known as u64), &mut io::sink()).map_err(code)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer).map_err(code)? {
            0 => return inspector.finish().map_err(|refusal| refusal.code().to_owned()),
            count => inspector
                .feed(&buffer[..count])
                .map_err(|refusal| refusal.code().to_owned())?,
        }
    }
}

fn code(error: io::Error) -> String {
    let known = DecompressError::of(&error)
        .map(DecompressError::code)
        .or(OvaError::of(&error).map(OvaError::code));
    known.map_or_else(|| format!("error: {error}"), str::to_owned)
}
