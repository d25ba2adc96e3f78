//! The whole test suite, in the order in which a mistake is cheapest to hear of; goes on after a failure and adds all up.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::guests::{Program, build, run_program};
use crate::tally::Tally;
use crate::tools::{cargo, have, output, root, run, say, shown};
use crate::watch::{keep, kept, watch};
use crate::{openapi, packages, probe, tidy};

/// How long all scenarios together may take.
const SCENARIOS_LIMIT: Duration = Duration::from_secs(1500);
/// How long one scenario may take in a lab host of its own, from the host's power-on.
const SCENARIO_LIMIT: Duration = Duration::from_secs(480);
/// How often a scenario is tried in the lab.
const LAB_ATTEMPTS: u32 = 3;

/// How long the disk matrix draws new images, unless `KARAT_DISK_MATRIX_MINUTES` says otherwise.
const MATRIX_MINUTES: &str = "10";

/// One part of the suite.
struct Step {
    name: &'static str,
    run: fn() -> Result<Tally>,
    /// It goes on beside the steps after it, and leaves a CPU to them.
    beside: bool,
}

impl Step {
    const fn new(name: &'static str, run: fn() -> Result<Tally>) -> Self {
        Self {
            name,
            run,
            beside: false,
        }
    }

    const fn beside(self) -> Self {
        Self { beside: true, ..self }
    }

    /// Runs it, and says how it ended.
    fn outcome(&self) -> (Tally, String) {
        let begun = Instant::now();
        let tally = (self.run)().unwrap_or_else(|error| {
            note(format!("{}: {error:#}", self.name));
            Tally::FAILED
        });
        let line = format!("{:<42} {tally} ({:.0} s)", self.name, begun.elapsed().as_secs_f32());
        say(&line);
        (tally, line)
    }
}

const STEPS: &[Step] = &[
    Step::new("format", || checked(cargo().args(["fmt", "--all", "--check"]))),
    Step::new("tidy", || tidy::run().map(|()| Tally::PASSED)),
    Step::new("tiny-guest payload", tiny_guest),
    Step::new("clippy", || {
        checked(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    }),
    Step::new("unit, conformance and tiny-guest tests", tests),
    Step::new("documentation tests", || {
        counted(cargo().args(["test", "--workspace", "--doc", "--no-fail-fast"]))
    }),
    Step::new("documentation", || {
        checked(
            cargo()
                .env("RUSTDOCFLAGS", "-D warnings")
                .args(["doc", "--workspace", "--no-deps", "--quiet"]),
        )
    }),
    Step::new("openapi is fresh", || openapi::run(true).map(|()| Tally::PASSED)),
    Step::new("disk matrix", disk_matrix).beside(),
    Step::new("scenarios with stock guests", scenarios),
];

/// Runs the suite; closes with one line that sums it up. `only` names the steps to run (a part of their names).
pub fn run_all(only: Option<&str>) -> Result<()> {
    // All at once and at first: a test that finds its peer missing is skipped.
    packages::install(&[
        packages::COMPILER,
        packages::PEERS,
        packages::QEMU_IMAGES,
        packages::REGISTRY,
        packages::IMAGES,
        packages::LAB,
    ])?;
    let begun = Instant::now();
    let mut total = Tally::default();
    let mut lines = Vec::new();
    let steps: Vec<&'static Step> = STEPS
        .iter()
        .filter(|step| only.is_none_or(|only| step.name.contains(only)))
        .collect();
    if steps.is_empty() {
        bail!(
            "no step's name contains {only:?}; steps: {}",
            STEPS.iter().map(|step| step.name).collect::<Vec<_>>().join(", ")
        );
    }
    let mut beside = Vec::new();
    for (index, &step) in steps.iter().enumerate() {
        say(format!("[{}/{}] {}", index + 1, steps.len(), step.name));
        if step.beside {
            beside.push((step.name, std::thread::spawn(move || step.outcome())));
        } else {
            let (tally, line) = step.outcome();
            lines.push(line);
            total += tally;
        }
    }
    for (name, thread) in beside {
        say(format!("waits for the end of: {name}"));
        let (tally, line) = thread
            .join()
            .unwrap_or_else(|_| (Tally::FAILED, format!("{name}: panicked")));
        lines.push(line);
        total += tally;
    }
    say(format!("summary after {:.0} s:", begun.elapsed().as_secs_f32()));
    for line in lines {
        say(format!("  {line}"));
    }
    for line in kept() {
        say(format!("  {line}"));
    }
    // The closing line, alone and on stdout: scripts read it.
    writeln!(std::io::stdout(), "{total}")?;
    if total.failed > 0 {
        bail!("{} of the suite's tests failed", total.failed);
    }
    Ok(())
}

/// Says it now and in the summary.
fn note(line: String) {
    say(&line);
    keep(line);
}

/// A command that holds or does not.
fn checked(command: &mut Command) -> Result<Tally> {
    let status = watch(command, |_| ())?;
    ensure!(status.success(), "{} ended with {status}", shown(command));
    Ok(Tally::PASSED)
}

/// A command whose output says how many tests held.
fn counted(command: &mut Command) -> Result<Tally> {
    let mut tally = Tally::default();
    let status = watch(command, |line| tally.read(line))?;
    if !status.success() && tally.failed == 0 {
        tally += Tally::FAILED;
    }
    Ok(tally)
}

/// nextest where it is, else cargo's own runner; the same selection.
fn tests() -> Result<Tally> {
    let nextest = have("cargo-nextest")
        || cargo()
            .args(["nextest", "--version"])
            .output()
            .is_ok_and(|asked| asked.status.success());
    // Programs that tests start; a selection of test targets does not build them all, and an old one is as bad as none.
    run(cargo().args(["build", "--workspace", "--bins", "--examples", "--quiet"]))?;
    let selection = ["--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
    if nextest {
        counted(
            cargo()
                .args(["nextest", "run", "--success-output", "final"])
                .args(selection),
        )
    } else {
        // Shown output lets us see which tests were skipped for want of something.
        counted(cargo().arg("test").args(selection).args(["--", "--show-output"]))
    }
}

/// Images of every kind against a model, killed writers, power loss.
fn disk_matrix() -> Result<Tally> {
    let mut command = cargo();
    command.args(["run", "--quiet", "-p", "disk-matrix", "--bin", "disk-matrix", "--"]);
    command.args(["--jobs", "1", "all"]);
    if std::env::var_os("KARAT_DISK_MATRIX_MINUTES").is_none() {
        command.env("KARAT_DISK_MATRIX_MINUTES", MATRIX_MINUTES);
    }
    counted(&mut command)
}

/// Builds the `no_std` payload of the tiny-guest tests, so that they find it fresh.
fn tiny_guest() -> Result<Tally> {
    let manifest = root().join("tests/tiny-guest");
    if !manifest.join("Cargo.toml").is_file() {
        return Ok(Tally::default());
    }
    add_target()?;
    checked(cargo().args(["build", "--release", "--quiet"]).current_dir(manifest))
}

/// The bare-metal target of payloads and firmware.
fn add_target() -> Result<()> {
    const TARGET: &str = "x86_64-unknown-none";
    if !have("rustup") && !output(Command::new("rustup").arg("--version")).is_ok_and(|said| !said.is_empty()) {
        return Ok(());
    }
    let installed = output(Command::new("rustup").args(["target", "list", "--installed"]))?;
    if installed.lines().any(|line| line == TARGET) {
        return Ok(());
    }
    say(format!("adds the Rust target {TARGET}"));
    run(Command::new("rustup").args(["--quiet", "target", "add", TARGET]))
}

/// The program that holds the scenarios.
const fn scenario_program(words: &str) -> Program<'_> {
    Program {
        package: "e2e",
        name: "scenarios",
        words,
        with_peer: false,
        with_registry: true,
        limit: SCENARIO_LIMIT,
    }
}

/// In the lab each scenario has a host of its own, so that a crash of the emulated host costs one attempt at one scenario.
fn scenarios() -> Result<Tally> {
    if probe::boots_stock_kernels()? {
        let ended = run_program(&Program {
            limit: SCENARIOS_LIMIT,
            ..scenario_program("")
        })?;
        let mut tally = Tally::default();
        ended.output.lines().for_each(|line| tally.read(line));
        if ended.status != 0 && tally.failed == 0 {
            tally += Tally::FAILED;
        }
        return Ok(tally);
    }
    let built = build(Some(&scenario_program("")))?;
    let names = output(Command::new(built.join("scenarios")).arg("--list"))?;
    let mut tally = Tally::default();
    for name in names.lines() {
        tally += attempt(name);
    }
    Ok(tally)
}

/// One scenario in the lab; tried again, and never quietly, since guests of an emulated host die of the emulator too
/// (docs/lab-notes.md).
fn attempt(name: &str) -> Tally {
    let words = format!("--only {name}");
    for number in 1..=LAB_ATTEMPTS {
        match run_program(&scenario_program(&words)) {
            Ok(ended) if ended.status == 0 => {
                if number > 1 {
                    note(format!(
                        "{name} passed at attempt {number} of {LAB_ATTEMPTS} in the lab"
                    ));
                }
                return Tally::PASSED;
            }
            Ok(ended) => note(format!(
                "{name}: attempt {number} of {LAB_ATTEMPTS} ended with {}",
                ended.status
            )),
            Err(error) => note(format!("{name}: attempt {number} of {LAB_ATTEMPTS}: {error:#}")),
        }
    }
    Tally::FAILED
}
