//! `kill -9`: a process that writes is killed at a random point, again and again, and what it leaves is checked.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::header;
use crate::kind::Kind;
use crate::ledger::Ledger;
use crate::make::make;
use crate::matrix::within;
use crate::random::Random;
use crate::say;
use crate::tools;
use crate::victim::{REPORT_BYTES, Report, What, content};

/// Kills of one image before a new one is made.
const GENERATIONS: u32 = 6;
/// How long a process that only opens and closes an image may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What is run.
#[derive(Debug)]
pub struct Killer {
    /// Words of the command line that choose the engine.
    pub engine: Vec<String>,
    /// Kinds of images.
    pub kinds: Vec<Kind>,
    /// Of everything.
    pub seed: u64,
    /// Kills in all.
    pub runs: u64,
    /// Stop earlier when this has passed.
    pub at_most: Duration,
    /// Processes at once.
    pub jobs: u64,
    /// Where images are made.
    pub dir: PathBuf,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Killed {
    /// Kills.
    pub runs: u64,
    /// Images with contradicting metadata.
    pub corrupt: u64,
    /// Images without data that was flushed, or with data that was never written.
    pub lost: u64,
    /// Images that could not be opened or written any more.
    pub unusable: u64,
    /// Reports of the killed processes: changes and flushes that were begun.
    pub requests: u64,
    /// The first bad ones.
    pub words: Vec<String>,
}

/// How one kill ended.
enum Verdict {
    Good,
    Corrupt(String),
    Lost(String),
    Unusable(String),
}

/// Kills until enough was killed.
pub fn run(killer: &Killer) -> Result<Killed> {
    let begun = Instant::now();
    let total = Mutex::new(Killed::default());
    let images = AtomicU64::new(0);
    say(&format!("kill -9: up to {} runs, seed {}", killer.runs, killer.seed));
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..killer.jobs)
            .map(|_| scope.spawn(|| work(killer, &total, &images, begun)))
            .collect();
        for thread in threads {
            thread.join().unwrap_or_else(|_| bail!("the harness panicked"))?;
        }
        Ok(())
    })?;
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn work(killer: &Killer, total: &Mutex<Killed>, images: &AtomicU64, begun: Instant) -> Result<()> {
    let over = || begun.elapsed() > killer.at_most || lock(total).runs >= killer.runs;
    while !over() {
        let number = images.fetch_add(1, Ordering::Relaxed);
        let index = usize::try_from(number)? % killer.kinds.len();
        let kind = killer.kinds.get(index).context("no kinds")?;
        let seed = killer.seed.wrapping_add(number);
        let dir = killer.dir.join(format!("{}-{seed}", kind.name));
        fs::create_dir_all(&dir)?;
        let mut known = make(kind, seed, &dir)?.contents;
        read_only_below(&dir)?;
        let mut good = true;
        for generation in 0..GENERATIONS {
            if over() {
                break;
            }
            let seed = seed ^ u64::from(generation + 1) << 40;
            let (verdict, requests) = one(killer, kind, &dir, &mut known, seed)?;
            good = add(&mut lock(total), &verdict, requests, &dir, seed);
            if !good {
                break;
            }
        }
        if good && let Err(error) = finish(killer, kind, &dir) {
            let mut total = lock(total);
            total.unusable += 1;
            let words = format!("{}: the last opening: {error:#}", dir.display());
            say(&words);
            total.words.push(words);
        } else if good {
            fs::remove_dir_all(&dir)?;
        }
    }
    Ok(())
}

fn lock(total: &Mutex<Killed>) -> std::sync::MutexGuard<'_, Killed> {
    total.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(total: &mut Killed, verdict: &Verdict, requests: u64, dir: &Path, seed: u64) -> bool {
    total.runs += 1;
    total.requests += requests;
    let words = match verdict {
        Verdict::Good => return true,
        Verdict::Corrupt(words) => {
            total.corrupt += 1;
            format!("corrupt: {words}")
        }
        Verdict::Lost(words) => {
            total.lost += 1;
            format!("lost: {words}")
        }
        Verdict::Unusable(words) => {
            total.unusable += 1;
            format!("unusable: {words}")
        }
    };
    let words: String = words.chars().take(700).collect();
    say(&format!("{} (seed {seed}): {words}", dir.display()));
    total.words.push(format!("{}: {words}", dir.display()));
    false
}

/// The engine must not write below the image; the kernel sees to it unless the harness runs as root, so contents are compared too.
fn read_only_below(dir: &Path) -> Result<()> {
    for level in 1.. {
        let path = dir.join(format!("below{level}/disk"));
        if !path.exists() {
            break;
        }
        let mut permissions = fs::metadata(&path)?.permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions)?;
    }
    Ok(())
}

/// One kill. `known` is what the disk holds, before and afterwards.
fn one(killer: &Killer, kind: &Kind, dir: &Path, known: &mut Vec<u8>, seed: u64) -> Result<(Verdict, u64)> {
    let mut random = Random::of(seed, 9);
    let mut child = command(killer, "victim", dir, seed)?
        .stdout(Stdio::piped())
        .spawn()
        .context("can not start the process to kill")?;
    let (reports, alive) = read_and_kill(&mut child, &mut random)?;
    let requests = reports.len() as u64;
    if !alive {
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        return Ok((Verdict::Unusable(format!("it ended by itself: {log}")), requests));
    }
    let top = dir.join("top.qcow2");
    // Lazy refcounts may be wrong until the next opening, and the image says so.
    if !(kind.lazy() && header::is_dirty(&top)?) {
        match tools::check(&top) {
            Ok(checked) if checked.corruptions == 0 => {}
            Ok(_) => return Ok((Verdict::Corrupt(tools::check_words(&top)), requests)),
            Err(error) => return Ok((Verdict::Corrupt(format!("{error:#}")), requests)),
        }
    }
    let raw = dir.join("model.raw");
    if let Err(error) = tools::to_raw(&top, &raw) {
        return Ok((Verdict::Corrupt(format!("QEMU can not read it: {error:#}")), requests));
    }
    let found = fs::read(&raw)?;
    let mut ledger = Ledger::new(std::mem::take(known));
    for report in &reports {
        tell(&mut ledger, report, seed)?;
    }
    *known = found;
    Ok(match ledger.check(known) {
        Ok(()) => (Verdict::Good, requests),
        Err(error) => (Verdict::Lost(format!("{error:#}")), requests),
    })
}

fn tell(ledger: &mut Ledger, report: &Report, seed: u64) -> Result<()> {
    let (offset, len) = (usize::try_from(report.offset)?, usize::try_from(report.len)?);
    match report.what {
        What::Opened => {}
        What::Write => ledger.begin(report.number, offset, content(seed, report.number, len), false),
        What::Zero => ledger.begin(report.number, offset, vec![0; len], false),
        What::Discard => ledger.begin(report.number, offset, vec![0; len], true),
        What::Done => ledger.done(report.number),
        What::Flush => ledger.begin_flush(report.number),
        What::FlushDone => ledger.flush_done(report.number),
    }
    Ok(())
}

/// A process of the harness that uses the image in `dir`.
fn command(killer: &Killer, what: &str, dir: &Path, seed: u64) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env("RUST_BACKTRACE", "0");
    command.args(&killer.engine).arg(what).arg("--dir").arg(dir);
    command.args(["--seed", &seed.to_string()]);
    let log = fs::File::create(dir.join("log"))?;
    command.stdin(Stdio::null()).stderr(log);
    Ok(command)
}

/// Reads reports up to a random one, kills the process, reads the rest. False when it ended by itself.
fn read_and_kill(child: &mut Child, random: &mut Random) -> Result<(Vec<Report>, bool)> {
    let mut pipe = child.stdout.take().context("no pipe")?;
    // Mostly after some requests; sometimes while it opens the image.
    let early = random.chance(8);
    let wanted = if early { 0 } else { random.below(500) };
    if early {
        thread::sleep(Duration::from_micros(random.below(12_000)));
    }
    let (mut bytes, mut piece) = (Vec::new(), vec![0; REPORT_BYTES * 64]);
    let begun = Instant::now();
    let mut alive = true;
    while (bytes.len() / REPORT_BYTES) < usize::try_from(wanted)? && begun.elapsed() < LIMIT {
        let count = pipe.read(&mut piece)?;
        if count == 0 {
            alive = false;
            break;
        }
        bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
    thread::sleep(Duration::from_micros(random.below(400)));
    if alive && child.try_wait()?.is_some() {
        alive = false;
    }
    child.kill()?;
    child.wait()?;
    pipe.read_to_end(&mut bytes)?;
    Ok((
        bytes.chunks_exact(REPORT_BYTES).filter_map(Report::read).collect(),
        alive,
    ))
}

/// The next opening works, mends what is to be mended, and leaves no contradiction.
fn finish(killer: &Killer, kind: &Kind, dir: &Path) -> Result<()> {
    let top = dir.join("top.qcow2");
    let mut command = command(killer, "finish", dir, 0)?;
    command.stdout(Stdio::null());
    if !within(command, LIMIT)? {
        bail!("{}", fs::read_to_string(dir.join("log")).unwrap_or_default());
    }
    let checked = tools::check(&top)?;
    if checked.corruptions > 0 {
        bail!("{}", tools::check_words(&top));
    }
    if kind.lazy() && header::is_dirty(&top)? {
        bail!("the image was closed and is still marked dirty");
    }
    // What was there after the last kill is there now.
    tools::compare(&top, &dir.join("model.raw"))
}
