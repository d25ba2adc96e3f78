//! What the host has.

use std::io;
use std::path::Path;

use api_types::ErrorCode;

use crate::HostConfig;
use crate::failure::Failure;

/// Physical memory of the host, bytes (`MemTotal` of `/proc/meminfo`, proc(5)).
pub(crate) fn memory_bytes() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemTotal"))
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Bytes free for the daemon on the file system of `path`.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes free and bytes in all of the file system of `path`.
pub(crate) fn room(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok((bytes(stat.f_bavail), bytes(stat.f_blocks)))
}

/// Fails when what must stay free on the state directory's file system does not, once `wanted_bytes` are taken. Blocks shortly.
pub(crate) fn check_space(config: &HostConfig, wanted_bytes: u64) -> Result<(), Failure> {
    let free = free_bytes(&config.state_dir)
        .map_err(|error| Failure::new(ErrorCode::Internal, format!("free space can not be read: {error}")))?;
    if free >= config.reserved_space_bytes.saturating_add(wanted_bytes) {
        return Ok(());
    }
    let wanted = match wanted_bytes {
        0 => String::new(),
        bytes => format!(", {} MiB are wanted", bytes >> 20),
    };
    Err(Failure::new(
        ErrorCode::NoSpace,
        format!(
            "{} has {} MiB left{wanted}, and {} MiB are kept free (reserved_space): remove machines, volumes or images",
            config.state_dir.display(),
            free >> 20,
            config.reserved_space_bytes >> 20
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_total() {
        assert_eq!(parse("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(parse("MemFree: 1 kB\n"), None);
        assert!(memory_bytes().unwrap() > 16 << 20);
    }
}
