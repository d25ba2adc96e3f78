//! One measurement in a process of its own: seconds it says it took, and processor time the kernel says it took.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// `sysconf(_SC_CLK_TCK)`: 100 on every Linux there is for this architecture (include/asm-generic/param.h, `USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A number of requests to one image.
#[derive(Debug, Clone, clap::Args)]
pub struct Load {
    /// The image.
    #[arg(long)]
    pub image: PathBuf,
    /// `raw` or `qcow2`.
    #[arg(long)]
    pub format: String,
    /// Requests.
    #[arg(long)]
    pub count: u64,
    /// Requests in flight.
    #[arg(long)]
    pub depth: u32,
    /// Bytes of each.
    #[arg(long)]
    pub bytes: u32,
    /// Bytes from the start of one to the start of the next.
    #[arg(long)]
    pub step: u64,
    /// Writes instead of reads.
    #[arg(long)]
    pub write: bool,
}

/// What a process took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    /// By its own clock, without its start; seconds.
    pub(super) seconds: f64,
    /// From its start to its end; seconds.
    pub(super) whole_seconds: f64,
    /// Of processors; seconds.
    pub(super) cpu_seconds: f64,
    /// Resident memory that it says an opening took, bytes.
    pub(super) opening_bytes: f64,
}

/// Whoever does the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Karat,
    QemuUring,
    QemuThreads,
}

impl Engine {
    pub(super) const PEERS: [Self; 2] = [Self::QemuUring, Self::QemuThreads];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Karat => "karat",
            Self::QemuUring => "qemu-io_uring",
            Self::QemuThreads => "qemu-threads",
        }
    }

    /// Does a load.
    pub(super) fn run(self, load: &Load) -> Result<Took> {
        let mut command = match self {
            Self::Karat => own("run", load)?,
            Self::QemuUring => bench("io_uring", load),
            Self::QemuThreads => bench("threads", load),
        };
        timed(&mut command)
    }
}

fn own(what: &str, load: &Load) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(what).arg("--image").arg(&load.image);
    command.args(["--format", &load.format]);
    command.args(["--count", &load.count.to_string()]);
    command.args(["--depth", &load.depth.to_string()]);
    command.args(["--bytes", &load.bytes.to_string()]);
    command.args(["--step", &load.step.to_string()]);
    if load.write {
        command.arg("--write");
    }
    Ok(command)
}

fn bench(aio: &str, load: &Load) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(["bench", "-t", "writeback", "-i", aio, "-f", &load.format]);
    command.args(["-c", &load.count.to_string(), "-d", &load.depth.to_string()]);
    command.args(["-s", &load.bytes.to_string(), "-S", &load.step.to_string()]);
    if load.write {
        command.arg("-w");
    }
    command.arg(&load.image);
    command
}

/// Lets children have as deep a stack as they want: `qemu-img bench` of QEMU 10.0 starts the next request within the completion of
/// the last, and where requests complete at once it falls off the usual 8 MiB.
pub fn allow_deep_stacks() -> Result<()> {
    let limit = getrlimit(Resource::Stack);
    setrlimit(
        Resource::Stack,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .context("the limit of stacks can not be raised")
}

/// Opening an image, by Karat.
pub(super) fn opened(image: &Path) -> Result<Took> {
    let mut command = Command::new(std::env::current_exe()?);
    timed(command.arg("open").arg(image))
}

/// Runs a command that prints `… completed in N seconds` (as `qemu-img bench` does), or nothing, and is then timed from outside.
pub(super) fn timed(command: &mut Command) -> Result<Took> {
    let before = children_seconds()?;
    let begun = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?} can not be run"))?;
    let whole_seconds = begun.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(Took {
        seconds: number_after(&said, "completed in ").unwrap_or(whole_seconds),
        whole_seconds,
        cpu_seconds: children_seconds()? - before,
        opening_bytes: number_after(&said, "resident bytes: ").unwrap_or(f64::NAN),
    })
}

fn number_after(said: &str, words: &str) -> Option<f64> {
    let (_, rest) = said.split_once(words)?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Processor time of children that have ended (proc(5), `cutime` and `cstime` of `/proc/self/stat`).
pub(crate) fn children_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold spaces; the third field follows it.
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/self/stat")?;
    let ticks: f64 = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS_PER_SECOND)
}
