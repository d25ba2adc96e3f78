//! `console.log`: all a guest ever said, in files of a bounded size.
//!
//! `console.log` is the newest, `console.log.1` the one before it, and so on. The directory is an inherited descriptor: this
//! process knows no path.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// Name of the newest log.
const NEWEST: &str = "console.log";

/// A log that starts a new file whenever the newest is full.
pub(crate) struct ConsoleLog {
    directory: OwnedFd,
    file: File,
    /// Bytes in `file`.
    size: u64,
    max_bytes: u64,
    keep: u32,
}

impl ConsoleLog {
    /// Goes on with the newest log in `directory`, or begins it. A file takes up to `max_bytes` (at least one); `keep` older
    /// ones are kept.
    pub(crate) fn open(directory: OwnedFd, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let file = open_newest(&directory)?;
        let size = file.metadata()?.len();
        Ok(Self {
            directory,
            file,
            size,
            max_bytes: max_bytes.max(1),
            keep,
        })
    }

    /// Appends all of `bytes`. After an error, what was not written yet is lost to the log; later writes are tried again.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.size >= self.max_bytes {
                self.rotate()?;
            }
            let room = usize::try_from(self.max_bytes - self.size).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.file.write_all(now)?;
            self.size += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Moves every log one place back; the oldest falls off the end.
    fn rotate(&mut self) -> io::Result<()> {
        for age in (0..self.keep).rev() {
            let (from, to) = (name(age), name(age + 1));
            match rustix::fs::renameat(&self.directory, &from, &self.directory, &to) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.keep == 0 {
            rustix::fs::unlinkat(&self.directory, NEWEST, AtFlags::empty())?;
        }
        self.file = open_newest(&self.directory)?;
        self.size = 0;
        Ok(())
    }
}

fn name(age: u32) -> String {
    match age {
        0 => NEWEST.to_owned(),
        age => format!("{NEWEST}.{age}"),
    }
}

fn open_newest(directory: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(directory, NEWEST, flags, Mode::from_raw_mode(0o640))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn open(directory: &Path, max_bytes: u64, keep: u32) -> ConsoleLog {
        ConsoleLog::open(File::open(directory).unwrap().into(), max_bytes, keep).unwrap()
    }

    fn contents(directory: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, std::fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn pair(name: &str, text: &str) -> (String, String) {
        (name.to_owned(), text.to_owned())
    }

    #[test]
    fn rotation_loses_nothing_but_the_oldest() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = open(directory.path(), 4, 2);
        log.append(b"0123456789abcdefg").unwrap();
        assert_eq!(
            contents(directory.path()),
            [
                pair("console.log", "g"),
                pair("console.log.1", "cdef"),
                pair("console.log.2", "89ab")
            ]
        );
    }

    #[test]
    fn a_new_process_goes_on_where_the_last_one_stopped() {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path(), 4, 1).append(b"abc").unwrap();
        open(directory.path(), 4, 1).append(b"de").unwrap();
        assert_eq!(
            contents(directory.path()),
            [pair("console.log", "e"), pair("console.log.1", "abcd")]
        );
    }

    #[test]
    fn without_older_ones_a_full_log_starts_over() {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path(), 2, 0).append(b"abc").unwrap();
        assert_eq!(contents(directory.path()), [pair("console.log", "c")]);
    }
}
