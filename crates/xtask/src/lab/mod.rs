//! The lab: a Debian host under emulation whose `/dev/kvm` boots stock guests.
//!
//! ```text
//! Lab::boot ──► booting ──► running /payload/run ──► status written ──► powered off ──► Outcome
//!                  └──────────────┴── deadline or QEMU's end ──► killed ──► error with the console's tail
//! ```
//!
//! Output, exit status and results of each host come over virtio-serial ports into files of its run directory. Dropping a
//! [`Lab`] kills what still runs; QEMU is tethered to this process besides, so that nothing is left whatever ends it.

pub mod images;
mod payload;
mod qemu;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use payload::Payload;
pub use qemu::HostConfig;
use qemu::{CONSOLE, Console, MESSAGES, OUT, PAYLOAD, RESULTS, STATUS};

use crate::cache::own_dir;
use crate::packages;
use crate::tools::{run, say};

/// How often new output is looked for.
const POLL: Duration = Duration::from_millis(50);
/// How often a host is interrupted from outside.
const PULSE_PERIOD: Duration = Duration::from_millis(250);
/// How long a host may take from its status to power-off.
const POWER_OFF: Duration = Duration::from_secs(20);
/// How much of the console an error shows, in lines.
const TAIL_LINES: usize = 40;

/// What one host's command ended with.
pub struct Outcome {
    /// Exit status of `/payload/run`.
    pub status: i32,
    /// Everything it printed.
    pub output: String,
    /// Directory with what it left in `/results`.
    pub results: PathBuf,
}

struct Host {
    number: usize,
    dir: PathBuf,
    child: Child,
    pulsed: Instant,
    out: Option<File>,
    printed: Vec<u8>,
    reported: Option<Instant>,
    ended: bool,
}

/// Running lab hosts.
pub struct Lab {
    hosts: Vec<Host>,
    booted: Instant,
}

impl Lab {
    /// Boots one host per payload (at most two; two are joined by a network, 10.99.0.1 and 10.99.0.2 on eth1).
    pub fn boot(name: &str, with_peer: bool, hosts: &[(HostConfig, &Payload)]) -> Result<Self> {
        anyhow::ensure!(
            matches!(hosts.len(), 1 | 2),
            "a lab has one or two hosts, not {}",
            hosts.len()
        );
        packages::install(&[packages::IMAGES, packages::LAB])?;
        let images = images::host(with_peer)?;
        say(format!(
            "boots {} lab host(s) under emulation (about 20 s)",
            hosts.len()
        ));
        let run = own_dir("run", name)?;
        let mut lab = Self {
            hosts: Vec::new(),
            booted: Instant::now(),
        };
        for (index, (config, payload)) in hosts.iter().enumerate() {
            let number = index + 1;
            let dir = host_dir(&run, number)?;
            payload.write(&dir.join(PAYLOAD))?;
            let child = qemu::command(config, &images.dir, &dir, (number, hosts.len()), Console::Log)
                .spawn()
                .context("cannot start qemu-system-x86_64")?;
            lab.hosts.push(Host {
                number,
                dir,
                child,
                pulsed: Instant::now(),
                out: None,
                printed: Vec::new(),
                reported: None,
                ended: false,
            });
        }
        Ok(lab)
    }

    /// Streams the hosts' output until all have ended; an error with the console's tail when one ends without status or `limit` passes.
    pub fn finish(mut self, limit: Duration) -> Result<Vec<Outcome>> {
        let prefixed = self.hosts.len() > 1;
        while self.hosts.iter().any(|host| !host.ended) {
            for host in &mut self.hosts {
                host.pulse();
                host.stream(prefixed)?;
                host.check()?;
            }
            if self.booted.elapsed() > limit {
                let slow = self
                    .hosts
                    .iter()
                    .find(|host| !host.ended)
                    .context("no host is running")?;
                bail!(
                    "lab host {} was not done after {} s; its console ends with:\n{}",
                    slow.number,
                    limit.as_secs(),
                    slow.tail()
                );
            }
            std::thread::sleep(POLL);
        }
        say(format!(
            "lab hosts are off after {:.1} s",
            self.booted.elapsed().as_secs_f32()
        ));
        self.hosts.iter().map(Host::outcome).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            let _ = host.child.kill();
            let _ = host.child.wait();
            let _ = fs::remove_file(host.dir.join(PAYLOAD));
        }
    }
}

impl Host {
    /// Interrupts the host now and then. The emulator loses the CPU's timer interrupt when it arrives while a guest is entered
    /// (docs/lab-notes.md, "The emulator's races"); the next interrupt of any kind brings it back, and an idle host has no other.
    fn pulse(&mut self) {
        if self.pulsed.elapsed() < PULSE_PERIOD {
            return;
        }
        self.pulsed = Instant::now();
        if let Some(port) = &mut self.child.stdin {
            // A host that has ended takes none; `check` tells.
            let _ = port.write_all(b".");
        }
    }

    /// Passes on what the host has printed since the last call.
    fn stream(&mut self, prefixed: bool) -> Result<()> {
        if self.out.is_none() {
            self.out = File::open(self.dir.join(OUT)).ok();
        }
        let Some(out) = &mut self.out else { return Ok(()) };
        let from = self.printed.len();
        out.read_to_end(&mut self.printed)?;
        let Some(fresh) = self.printed.get(from..).filter(|fresh| !fresh.is_empty()) else {
            return Ok(());
        };
        let mut stdout = std::io::stdout().lock();
        if prefixed {
            for line in String::from_utf8_lossy(fresh).lines() {
                writeln!(stdout, "lab{}| {line}", self.number)?;
            }
        } else {
            stdout.write_all(fresh)?;
        }
        stdout.flush()?;
        Ok(())
    }

    /// Notices the end of the host.
    fn check(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let exited = self.child.try_wait()?.is_some();
        if self.status().is_some() {
            let since = *self.reported.get_or_insert_with(Instant::now);
            if exited || since.elapsed() > POWER_OFF {
                self.stream(false)?;
                self.ended = true;
            }
        } else if exited {
            // Its kernel panicked or the emulator died: the lab's failure, not that of what ran in it.
            bail!(
                "lab host {} ended before its command did; its console ends with:\n{}",
                self.number,
                self.tail()
            );
        }
        Ok(())
    }

    fn status(&self) -> Option<i32> {
        let text = fs::read_to_string(self.dir.join(STATUS)).ok()?;
        text.strip_suffix('\n')?.trim().parse().ok()
    }

    fn tail(&self) -> String {
        let mut text = String::new();
        for file in [MESSAGES, CONSOLE] {
            let said = fs::read(self.dir.join(file)).unwrap_or_default();
            text.extend(
                String::from_utf8_lossy(&said)
                    .lines()
                    .filter(|line| !line.contains("TCG doesn't support"))
                    .flat_map(|line| [line, "\n"]),
            );
        }
        let lines: Vec<&str> = text.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(TAIL_LINES))
            .map(|line| format!("    {line}\n"))
            .collect()
    }

    fn outcome(&self) -> Result<Outcome> {
        let results = self.dir.join("results");
        let _ = fs::remove_dir_all(&results);
        fs::create_dir_all(&results)?;
        run(Command::new("tar")
            .arg("-C")
            .arg(&results)
            .arg("-xf")
            .arg(self.dir.join(RESULTS))
            .arg("--no-same-owner"))
        .with_context(|| format!("the results of lab host {} did not arrive whole", self.number))?;
        let _ = fs::remove_file(self.dir.join(RESULTS));
        let output = String::from_utf8_lossy(&self.printed).into_owned();
        Ok(Outcome {
            status: self.status().context("no exit status")?,
            output,
            results,
        })
    }
}

fn host_dir(run: &Path, number: usize) -> Result<PathBuf> {
    let dir = run.join(format!("host{number}"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Boots a host with a root shell on this terminal; `Ctrl-a x` ends it, as does `poweroff`.
pub fn shell(payload: &Payload) -> Result<()> {
    packages::install(&[packages::IMAGES, packages::LAB])?;
    let images = images::host(false)?;
    let dir = host_dir(&own_dir("run", "shell")?, 1)?;
    payload.write(&dir.join(PAYLOAD))?;
    say("boots a lab host with a root shell here (about 20 s); `poweroff -f` or Ctrl-a x ends it");
    let ended = run(&mut qemu::command(
        &HostConfig::default(),
        &images.dir,
        &dir,
        (1, 1),
        Console::Terminal,
    ));
    let _ = fs::remove_file(dir.join(PAYLOAD));
    ended
}
