//! Figures of the machine, on a host whose `/dev/kvm` boots stock kernels: start-up next to QEMU's microvm, and resident memory.
//!
//! Prints a line per figure and, with `--json FILE`, appends JSON lines. Rounds of Karat and of the peer alternate.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use api_types::ByteSize;
use clap::Parser;
use e2e::{Daemon, Environment, Guest, Kernel};
use perf::{Figure, Microvm, Target, daemon_rss_kib, machine_rss_kib, median};

/// What the stock guest's init prints first.
const USERSPACE: &str = "karat: up";
/// The same for both.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";
/// The same for both, MiB.
const MEMORY_MIB: u32 = 256;
/// How long a boot may take before it counts as failed.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Measures start-up and memory of machines.
#[derive(Debug, Parser)]
struct Args {
    /// Directory with karatd, karat and karat-vmm.
    #[arg(long)]
    programs: PathBuf,
    /// Directory with vmlinuz, vmlinux and initrd of the stock guest.
    #[arg(long)]
    guest: PathBuf,
    /// Directory to work in.
    #[arg(long)]
    work: PathBuf,
    /// Rounds of each.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// File for JSON lines.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What the rounds gave.
#[derive(Default)]
struct Measured {
    first_instruction_ms: Vec<f64>,
    userspace_s: Vec<f64>,
    peer_userspace_s: Vec<f64>,
    machine_rss_kib: Vec<f64>,
    daemon_rss_kib: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let environment = Environment {
        programs: args.programs,
        guest: args.guest,
        work: args.work,
    };
    environment.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(&environment, args.rounds))?;
    report(measured, args.json.as_deref())
}

async fn measure(environment: &Environment, rounds: u32) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let daemon = Daemon::start(environment).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pid = daemon.pid().context("no daemon")?;
    measured.daemon_rss_kib.push(daemon_rss_kib(pid)?);
    let kernel = environment.guest.join(Kernel::BzImage.file());
    let initrd = environment.guest.join("initrd");
    for _ in 0..rounds {
        let microvm = Microvm {
            kernel: &kernel,
            initrd: &initrd,
            cmdline: CMDLINE,
            memory_mib: MEMORY_MIB,
        };
        measured.peer_userspace_s.push(microvm.seconds_until(USERSPACE)?);
        round(&daemon, &mut measured).await?;
    }
    daemon.end().await?;
    Ok(measured)
}

async fn round(daemon: &Daemon, measured: &mut Measured) -> anyhow::Result<()> {
    let mut spec = daemon.stock("figure", Kernel::BzImage);
    spec.memory = ByteSize::from_mib(MEMORY_MIB);
    if let Some(boot) = &mut spec.boot {
        boot.cmdline = Some(CMDLINE.to_owned());
    }
    daemon.client.create_vm(&spec).await?;
    let begin = Instant::now();
    let vm = daemon.start_vm("figure").await?;
    let mut guest = Guest::watch(&daemon.client, "figure").await?;
    guest.expect(USERSPACE, BOOT_LIMIT).await?;
    measured.userspace_s.push(begin.elapsed().as_secs_f64());
    let first = vm
        .status
        .start_to_guest_us
        .context("no time of the first guest instruction")?;
    measured
        .first_instruction_ms
        .push(Duration::from_micros(first).as_secs_f64() * 1e3);
    measured
        .machine_rss_kib
        .push(machine_rss_kib(vm.status.pid.context("no process")?)?);
    daemon.client.remove_vm("figure", true).await?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn report(mut measured: Measured, json: Option<&std::path::Path>) -> anyhow::Result<()> {
    let peer = median(&mut measured.peer_userspace_s);
    let figures = [
        Figure::new(
            "start to first guest instruction",
            median(&mut measured.first_instruction_ms),
            "ms",
            None,
            Target::Watched,
        ),
        Figure::new(
            "start to userspace",
            median(&mut measured.userspace_s),
            "s",
            Some(("qemu-microvm", peer)),
            Target::FasterThanPeer(1.0),
        ),
        Figure::new(
            "karat-vmm RSS without guest",
            median(&mut measured.machine_rss_kib),
            "KiB",
            None,
            Target::AtMost(5120.0),
        ),
        Figure::new(
            "karatd RSS idle",
            median(&mut measured.daemon_rss_kib),
            "KiB",
            None,
            Target::Watched,
        ),
    ];
    for figure in &figures {
        println!("{figure}");
    }
    if let Some(path) = json {
        let mut file = std::fs::File::options().create(true).append(true).open(path)?;
        for figure in &figures {
            writeln!(file, "{}", serde_json::to_string(figure)?)?;
        }
    }
    Ok(())
}
