//! The peer: QEMU's microvm machine, the leanest QEMU has.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long a boot may take before it counts as failed.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// How a microvm is started; one vCPU and no devices but the serial port, as its documentation recommends for speed.
pub struct Microvm<'a> {
    /// bzImage.
    pub kernel: &'a Path,
    /// Initial RAM file system.
    pub initrd: &'a Path,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Guest memory, MiB.
    pub memory_mib: u32,
}

impl Microvm<'_> {
    /// Seconds from the start of the process until its serial port has printed `text`.
    pub fn seconds_until(&self, text: &str) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let mut child = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "microvm,x-option-roms=off,pic=off,pit=off,rtc=off,isa-serial=on",
                "-enable-kvm",
                "-cpu",
                "host",
            ])
            .args([
                "-m",
                &self.memory_mib.to_string(),
                "-smp",
                "1",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
            ])
            .args(["-serial", "stdio", "-no-reboot", "-append", self.cmdline])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initrd)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("qemu-system-x86_64 can not be run")?;
        let result = child
            .stdout
            .take()
            .context("no output")
            .and_then(|output| read_until(output, text, begin));
        child.kill()?;
        child.wait()?;
        result
    }
}

fn read_until(mut output: impl Read, text: &str, begin: Instant) -> anyhow::Result<f64> {
    let (mut seen, mut bytes) = (String::new(), [0; 4096]);
    while begin.elapsed() < BOOT_LIMIT {
        let count = output.read(&mut bytes)?;
        if count == 0 {
            bail!("the microvm ended before it printed {text:?}:\n{seen}");
        }
        seen.push_str(&String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()));
        if seen.contains(text) {
            return Ok(begin.elapsed().as_secs_f64());
        }
    }
    bail!(
        "the microvm did not print {text:?} within {} s:\n{seen}",
        BOOT_LIMIT.as_secs()
    )
}
