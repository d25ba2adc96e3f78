//! Resident memory of processes, from `/proc` (proc(5)).

use anyhow::Context;

/// Resident memory of a machine process without its guest's memory, KiB: every mapping but those of memfds.
pub fn machine_rss_kib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = std::fs::read_to_string(&path).with_context(|| format!("can not read {path}"))?;
    Ok(without_memfds(&smaps))
}

/// Resident memory of a process, KiB.
pub fn daemon_rss_kib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("can not read {path}"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("no VmRSS")?;
    kib(line).context("VmRSS is no number")
}

fn kib(line: &str) -> Option<f64> {
    line.split_whitespace().nth(1)?.parse().ok()
}

fn without_memfds(smaps: &str) -> f64 {
    let (mut guest, mut sum) = (false, 0.0);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            guest = line.contains("/memfd:");
        } else if first == "Rss:" && !guest {
            sum += kib(line).unwrap_or(0.0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "00400000-00500000 r-xp 00000000 fe:01 1 /usr/bin/karat-vmm\nSize: 1024 kB\nRss: 300 kB\n\
                     7f0000000000-7f0020000000 rw-s 00000000 00:01 5 /memfd:guest (deleted)\nSize: 524288 kB\nRss: 100000 kB\n\
                     7ffd00000000-7ffd00100000 rw-p 00000000 00:00 0 [stack]\nRss: 20 kB\n";
        assert!((without_memfds(smaps) - 320.0).abs() < f64::EPSILON);
    }
}
