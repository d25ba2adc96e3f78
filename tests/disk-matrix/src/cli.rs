//! The command line, shared by the program for Karat's engine and the one for its peers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::engine::Engine;
use crate::killer::{self, Killer};
use crate::kind::Kind;
use crate::matrix::{self, Matrix};
use crate::outages::{self, Outages};
use crate::power::{self, Power};
use crate::random::fresh_seed;
use crate::single::{self, Single};
use crate::{kinds, say, victim};

/// Environment variable with the minutes of the matrix, for pipelines.
const MINUTES: &str = "KARAT_DISK_MATRIX_MINUTES";

/// Proves a qcow2 engine: against a model, under `kill -9`, and under power loss.
#[derive(Debug, Parser)]
struct Args {
    /// Which engine.
    #[arg(long, global = true, default_value = "")]
    engine: String,
    /// Where images are made (memory by default).
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Repeats a run; printed by every run.
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// Only kinds whose names contain this.
    #[arg(long, global = true)]
    only: Option<String>,
    /// Processes at once.
    #[arg(long, global = true, default_value_t = 2)]
    jobs: u32,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The short form of all three.
    All,
    /// Prints the names of all kinds.
    List,
    /// Every kind of image against the model.
    Matrix {
        /// Goes on with further seeds for so long (KARAT_DISK_MATRIX_MINUTES says the same).
        #[arg(long)]
        minutes: Option<u64>,
        /// Requests to each image.
        #[arg(long, default_value_t = 400)]
        requests: u32,
    },
    /// Kills writing processes.
    Kill {
        /// How often.
        #[arg(long, default_value_t = 1000)]
        runs: u64,
        /// Stops after so many seconds.
        #[arg(long, default_value_t = 3600)]
        seconds: u64,
    },
    /// Replays what a power loss may leave.
    Power {
        /// Recorded runs; 0: as many as the time allows.
        #[arg(long, default_value_t = 0)]
        runs: u64,
        /// States of each that are checked.
        #[arg(long, default_value_t = 40)]
        states: u32,
        /// Requests in each.
        #[arg(long, default_value_t = 120)]
        requests: u32,
        /// Requests in flight at once.
        #[arg(long, default_value_t = 4)]
        depth: u32,
        /// Stops after so many seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Reads contents with QEMU and does not use the states again.
        #[arg(long)]
        by_qemu: bool,
    },
    /// One image of the matrix.
    #[command(hide = true)]
    One {
        #[arg(long)]
        kind: String,
        #[arg(long)]
        requests: u32,
    },
    /// One recorded run.
    #[command(hide = true)]
    PowerOne {
        #[arg(long)]
        kind: String,
        #[arg(long)]
        states: u32,
        #[arg(long)]
        requests: u32,
        #[arg(long)]
        depth: u32,
        #[arg(long)]
        by_qemu: bool,
    },
    /// The process that is killed.
    #[command(hide = true)]
    Victim,
    /// Opens and closes.
    #[command(hide = true)]
    Finish,
}

/// Runs what the command line asks for; the first engine is the default.
pub fn run(engines: &[&dyn Engine]) -> Result<()> {
    let args = Args::parse();
    let engine = engines
        .iter()
        .find(|engine| args.engine.is_empty() || engine.name() == args.engine)
        .with_context(|| {
            let names: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
            format!("no such engine; there are: {}", names.join(", "))
        })?;
    let run = Run {
        engine: *engine,
        seed: args.seed.unwrap_or_else(fresh_seed),
        args,
    };
    run.run()
}

struct Run<'a> {
    engine: &'a dyn Engine,
    seed: u64,
    args: Args,
}

impl Run<'_> {
    fn run(&self) -> Result<()> {
        match &self.args.what {
            What::All => self.all(),
            What::List => {
                for kind in kinds::all() {
                    say(&kind.name);
                }
                Ok(())
            }
            What::Matrix { minutes, requests } => self.matrix(minutes.or_else(minutes_of_environment), *requests),
            What::Kill { runs, seconds } => self.kill(*runs, *seconds),
            What::Power {
                runs,
                states,
                requests,
                depth,
                seconds,
                by_qemu,
            } => {
                let seconds = if *runs > 0 { u64::from(u32::MAX) } else { *seconds };
                self.power(*runs, [*states, *requests, *depth], seconds, *by_qemu)
            }
            What::One { kind, requests } => {
                let single = Single {
                    seed: self.seed,
                    requests: *requests,
                    dir: self.dir()?,
                };
                single::run(self.engine, &kind_named(kind)?, &single)
            }
            What::PowerOne {
                kind,
                states,
                requests,
                depth,
                by_qemu,
            } => {
                let power = Power {
                    seed: self.seed,
                    requests: *requests,
                    depth: *depth,
                    states: *states,
                    dir: self.dir()?,
                    by_qemu: *by_qemu,
                };
                let found = power::run(self.engine, &outages::kind_named(kind)?, &power)?;
                say(&outages::to_line(&found));
                Ok(())
            }
            What::Victim => victim::run(self.engine, &victim::stack_in(self.dir()?), self.seed),
            What::Finish => victim::finish(self.engine, &victim::stack_in(self.dir()?)),
        }
    }

    fn dir(&self) -> Result<&Path> {
        self.args.dir.as_deref().context("--dir is missing")
    }

    /// A directory of this run, in memory where there is any; it stays when images did not hold.
    fn scratch(&self, what: &str) -> Result<PathBuf> {
        let memory = Path::new("/dev/shm");
        let parent = match &self.args.dir {
            Some(dir) => dir.clone(),
            None if memory.is_dir() => memory.to_path_buf(),
            None => std::env::temp_dir(),
        };
        let dir = parent.join(format!("disk-matrix-{what}-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    fn engine_words(&self) -> Vec<String> {
        vec!["--engine".to_owned(), self.engine.name().to_owned()]
    }

    fn wanted(&self, kinds: Vec<Kind>) -> Vec<Kind> {
        let only = self.args.only.as_deref();
        let wanted = kinds.into_iter();
        wanted
            .filter(|kind| only.is_none_or(|only| kind.name.contains(only)))
            .collect()
    }

    /// All three one after another; a failure of one does not keep the others from running.
    fn all(&self) -> Result<()> {
        let matrix = self.matrix(minutes_of_environment(), 240);
        let kill = self.kill(300, 40);
        let power = self.power(0, [30, 120, 4], 40, false);
        matrix.and(kill).and(power)
    }

    fn matrix(&self, minutes: Option<u64>, requests: u32) -> Result<()> {
        let begun = Instant::now();
        let dir = self.scratch("images")?;
        let kinds = self.wanted(kinds::all());
        let matrix = Matrix {
            engine: self.engine_words(),
            kinds: kinds.iter().map(|kind| kind.name.clone()).collect(),
            seed: self.seed,
            requests,
            at_least: Duration::from_secs(minutes.unwrap_or(0) * 60),
            jobs: self.args.jobs as usize,
            dir: dir.clone(),
        };
        let (images, failures) = matrix::run(&matrix)?;
        say(&format!(
            "disk matrix of {}: {} kinds, {images} images, {} failed, {:.0} s, seed {}",
            self.engine.name(),
            kinds.len(),
            failures.len(),
            begun.elapsed().as_secs_f32(),
            self.seed
        ));
        say(&tally(images - failures.len() as u64, failures.len() as u64));
        if !failures.is_empty() {
            bail!("{} images did not hold; they are in {}", failures.len(), dir.display());
        }
        std::fs::remove_dir_all(dir)?;
        Ok(())
    }

    fn kill(&self, runs: u64, seconds: u64) -> Result<()> {
        let begun = Instant::now();
        let dir = self.scratch("kill")?;
        let killer = Killer {
            engine: self.engine_words(),
            kinds: self.wanted(outages::kinds_for_kills()),
            seed: self.seed,
            runs,
            at_most: Duration::from_secs(seconds),
            jobs: u64::from(self.args.jobs),
            dir: dir.clone(),
        };
        let killed = killer::run(&killer)?;
        let bad = killed.corrupt + killed.lost + killed.unusable;
        say(&format!(
            "kill -9 of {}: {} runs, {} reports, {} corrupt, {} lost data, {} unusable, {:.0} s, seed {}",
            self.engine.name(),
            killed.runs,
            killed.requests,
            killed.corrupt,
            killed.lost,
            killed.unusable,
            begun.elapsed().as_secs_f32(),
            self.seed
        ));
        say(&tally(u64::from(bad == 0), u64::from(bad > 0)));
        if bad > 0 {
            bail!("{bad} images did not survive; they are in {}", dir.display());
        }
        std::fs::remove_dir_all(dir)?;
        Ok(())
    }

    fn power(&self, runs: u64, [states, requests, depth]: [u32; 3], seconds: u64, by_qemu: bool) -> Result<()> {
        let begun = Instant::now();
        let dir = self.scratch("power")?;
        let outages = Outages {
            engine: self.engine_words(),
            kinds: self.wanted(outages::kinds_for_power()),
            seed: self.seed,
            runs,
            states,
            requests,
            depth,
            at_most: Duration::from_secs(seconds),
            jobs: self.args.jobs,
            by_qemu,
            dir: dir.clone(),
        };
        let (traces, found, broken) = outages::run(&outages)?;
        let bad = found.corrupt + found.lost + found.unusable + broken;
        say(&format!(
            "power loss of {}: {traces} recorded runs ({broken} broken), {} states, {} corrupt, {} lost data, {} unusable, \
             {:.0} s, seed {}",
            self.engine.name(),
            found.states,
            found.corrupt,
            found.lost,
            found.unusable,
            begun.elapsed().as_secs_f32(),
            self.seed
        ));
        say(&tally(u64::from(bad == 0), u64::from(bad > 0)));
        if bad > 0 {
            bail!("{bad} states did not survive; images are in {}", dir.display());
        }
        std::fs::remove_dir_all(dir)?;
        Ok(())
    }
}

/// In the words that the suite counts.
fn tally(passed: u64, failed: u64) -> String {
    let result = if failed == 0 { "ok" } else { "FAILED" };
    format!("test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out")
}

fn minutes_of_environment() -> Option<u64> {
    std::env::var(MINUTES).ok()?.parse().ok()
}

fn kind_named(name: &str) -> Result<Kind> {
    let found = kinds::all().into_iter().find(|kind| kind.name == name);
    found.with_context(|| format!("no kind is called {name}"))
}
