//! Who holds a lock on a file.

use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

/// A process that has locked a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id, in this process's namespace.
    pub pid: u32,
    /// Its name, as the kernel shortens it.
    pub name: String,
}

/// The processes that have locked a file, as far as this process may see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders(pub Vec<Holder>);

impl Holders {
    /// Looks through `/proc` for openings of the file behind `fd` that hold locks. The kernel names no owner for locks of this
    /// kind (`F_OFD_GETLK` says -1), but shows them with the descriptors (proc_pid_fdinfo(5)). For error messages: slow.
    pub(crate) fn of(fd: impl AsFd) -> Self {
        let Ok(stat) = rustix::fs::fstat(fd) else {
            return Self(Vec::new());
        };
        let file = (stat.st_dev, stat.st_ino);
        let mut holders = Vec::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid
                && holds(&process.path(), file)
            {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                holders.push(Holder {
                    pid,
                    name: name.trim_end().to_owned(),
                });
            }
        }
        Self(holders)
    }
}

fn holds(process: &Path, file: (u64, u64)) -> bool {
    fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            let same = rustix::fs::stat(entry.path()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == file);
            same && fs::read_to_string(process.join("fdinfo").join(entry.file_name()))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
        })
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a process that can not be seen from here");
        }
        for (index, Holder { pid, name }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}process {pid} ({name})")?;
        }
        Ok(())
    }
}
