//! Programs that drive stock guests (scenarios, figures): built, given what they need, run directly or in the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cache::own_dir;
use crate::lab::{HostConfig, Lab, Payload};
use crate::tools::{as_root, cargo, run, say, target};
use crate::{golden, packages, probe};

/// The product's programs.
pub const PROGRAMS: &[&str] = &["karatd", "karat", "karat-vmm"];

/// A program and how it is run.
pub struct Program<'a> {
    /// Its package.
    pub package: &'a str,
    /// Its name; called with `--programs DIR --guest DIR --work DIR` and [`Program::words`].
    pub name: &'a str,
    /// Further words of its command line. `/results` is a directory whose files are kept.
    pub words: &'a str,
    /// Does it need QEMU as a peer?
    pub with_peer: bool,
    /// Does it need `docker-registry`?
    pub with_registry: bool,
    /// How long it may take.
    pub limit: Duration,
}

/// What a program ended with.
pub struct Ended {
    /// Its exit status.
    pub status: i32,
    /// What it printed.
    pub output: String,
    /// Where the files are that it left in `/results`.
    pub results: PathBuf,
}

/// Builds the product's programs as they are shipped, and `program`; gives the directory they are in.
pub fn build(program: Option<&Program>) -> Result<PathBuf> {
    packages::install(&[packages::COMPILER])?;
    say("builds the release programs: karatd, karat, karat-vmm (some minutes the first time)");
    let mut build = cargo();
    build.args(["build", "--release", "--bins"]);
    for package in PROGRAMS.iter().copied().chain(program.map(|program| program.package)) {
        build.args(["--package", package]);
    }
    run(&mut build)?;
    Ok(target().join("release"))
}

/// Builds all, then runs `program` where stock guests run. Its output is streamed.
pub fn run_program(program: &Program) -> Result<Ended> {
    let built = build(Some(program))?;
    let guest = guest_files()?;
    if probe::boots_stock_kernels()? {
        directly(program, &built, &guest)
    } else {
        in_lab(program, &built, &guest)
    }
}

/// A directory with the tiny stock guest under the names that programs expect.
fn guest_files() -> Result<PathBuf> {
    let (tiny, disk_tools) = (golden::tiny()?, golden::disk_tools()?);
    let dir = target().join("lab/guest");
    fs::create_dir_all(&dir)?;
    for (artefact, from, to) in [
        (&tiny, "vmlinuz", "vmlinuz"),
        (&tiny, "vmlinux", "vmlinux"),
        (&tiny, "initrd.img", "initrd"),
        (&tiny, "blank.qcow2", "blank.qcow2"),
        (&disk_tools, "initrd.img", "initrd-disk"),
    ] {
        let to = dir.join(to);
        let _ = fs::remove_file(&to);
        fs::copy(artefact.dir.join(from), &to)?;
    }
    Ok(dir)
}

/// Puts the tiny stock guest into a payload, under `guest/`.
pub fn add_guest(payload: &mut Payload) -> Result<()> {
    payload.add_tree(&guest_files()?, "guest").map(drop)
}

fn directly(program: &Program, built: &Path, guest: &Path) -> Result<Ended> {
    let scratch = target().join("lab/run").join(program.name);
    let results = scratch.join("results");
    let _ = run(as_root("rm").arg("-rf").arg(&scratch));
    fs::create_dir_all(&results)?;
    let script = command_line(
        program,
        &built.display().to_string(),
        &guest.display().to_string(),
        &scratch.join("work").display().to_string(),
    )
    .replace("/results", &results.display().to_string());
    let log = scratch.join("output");
    let piped = format!("({script}) 2>&1 | tee {}; exit ${{PIPESTATUS[0]}}", log.display());
    let status = as_root("timeout")
        .arg(program.limit.as_secs().to_string())
        .args(["bash", "-c", &piped])
        .status()?;
    let output = fs::read_to_string(&log).unwrap_or_default();
    Ok(Ended {
        status: status.code().unwrap_or(-1),
        output,
        results,
    })
}

fn in_lab(program: &Program, built: &Path, guest: &Path) -> Result<Ended> {
    let mut payload = Payload::new(&own_dir("payload", program.name)?)?;
    for name in PROGRAMS.iter().chain([&program.name]) {
        payload.add(&built.join(name), &format!("bin/{name}"))?;
    }
    if program.with_registry {
        packages::install(&[packages::REGISTRY])?;
        payload.add(Path::new("/usr/bin/docker-registry"), "bin/docker-registry")?;
    }
    payload.add_tree(guest, "guest")?;
    let line = command_line(program, "/payload/bin", "/payload/guest", "/var/tmp/karat");
    payload.script(&format!("#!/bin/bash\nexec {line}\n"))?;
    let lab = Lab::boot(program.name, program.with_peer, &[(HostConfig::default(), &payload)])?;
    let mut outcomes = lab.finish(program.limit)?;
    ensure!(outcomes.len() == 1, "one lab host has one outcome");
    let outcome = outcomes.remove(0);
    Ok(Ended {
        status: outcome.status,
        output: outcome.output,
        results: outcome.results,
    })
}

fn command_line(program: &Program, programs: &str, guest: &str, work: &str) -> String {
    let Program { name, words, .. } = program;
    // The program itself is beside the others.
    format!("{programs}/{name} --programs {programs} --guest {guest} --work {work} {words}")
}

/// A command whose output streams through us: stdout and stderr as one.
pub fn merged(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec \"$@\" 2>&1", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    if let Some(dir) = command.get_current_dir() {
        shell.current_dir(dir);
    }
    shell
}
