//! qcow2 to raw, by `qemu-img` behind walls.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox::{ConfinedCommand, End, Limits};

/// Where `qemu-img` is looked for.
const PLACES: [&str; 3] = ["/usr/bin/qemu-img", "/usr/local/bin/qemu-img", "/bin/qemu-img"];
/// Address space for one conversion: 200 MiB of libraries, thread stacks, and qcow2 tables of the largest disk.
const ADDRESS_SPACE_BYTES: u64 = 4 << 30;

/// Why a disk could not be flattened.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// There is no `qemu-img`.
    #[error("qemu-img is not installed; install package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)")]
    NoQemuImg,
    /// It could not be run.
    #[error("qemu-img could not be run")]
    Run(#[source] sandbox::RunError),
    /// It did not like the disk.
    #[error("qemu-img failed ({end}): {message}")]
    Failed {
        /// How it ended.
        end: String,
        /// What it said.
        message: String,
    },
    /// It was killed.
    #[error("qemu-img took longer than {} s", limit.as_secs())]
    TooSlow {
        /// The deadline.
        limit: Duration,
    },
    /// The file system is full.
    #[error("no space left for the converted disk")]
    DiskFull,
    /// The caller asked for it.
    #[error("the conversion was cancelled")]
    Cancelled,
    /// The target could not be made, or has the wrong size.
    #[error("the converted disk could not be written")]
    Target(#[source] std::io::Error),
}

/// One conversion.
pub(crate) struct Flatten<'a> {
    /// Configured program, if not in one of the usual places.
    pub(crate) program: Option<&'a Path>,
    /// The qcow2 file; its header has been judged.
    pub(crate) source: &'a Path,
    /// The raw file to be made; must not exist.
    pub(crate) target: &'a Path,
    /// Virtual size, bytes.
    pub(crate) size_bytes: u64,
    /// How long it may take.
    pub(crate) limit: Duration,
}

impl Flatten<'_> {
    /// Blocks until done. `progress` gets bytes of the virtual size.
    pub(crate) fn run(&self, progress: &mut dyn FnMut(u64), stop: &dyn Fn() -> bool) -> Result<(), ConvertError> {
        let program = self.program().ok_or(ConvertError::NoQemuImg)?;
        let length = self
            .size_bytes
            .checked_next_multiple_of(512)
            .ok_or_else(|| ConvertError::Target(std::io::ErrorKind::FileTooLarge.into()))?;
        File::create_new(self.target)
            .and_then(|file| file.set_len(length))
            .map_err(ConvertError::Target)?;
        let limits = Limits {
            cpu: self.limit,
            address_space_bytes: ADDRESS_SPACE_BYTES,
            file_size_bytes: length,
            ..Limits::default()
        };
        // The target exists and is all holes, so zeros need not be written.
        let command = ["convert", "-p", "-n", "--target-is-zero", "-f", "qcow2", "-O", "raw"]
            .iter()
            .fold(ConfinedCommand::new(program, self.limit), |command, argument| {
                command.arg(argument)
            })
            .arg(self.source)
            .arg(self.target)
            .read(self.source)
            .write(self.target)
            .limits(limits);
        let mut meter = Percent::default();
        let outcome = command
            .run(&mut |piece| meter.feed(piece, self.size_bytes, progress), stop)
            .map_err(ConvertError::Run)?;
        for gap in &outcome.gaps {
            tracing::warn!(program = "qemu-img", "{gap}");
        }
        match outcome.end {
            End::Exited(0) => {}
            End::Stopped => return Err(ConvertError::Cancelled),
            End::DeadlinePassed => return Err(ConvertError::TooSlow { limit: self.limit }),
            _ if outcome.stderr_tail.contains("No space left on device") => return Err(ConvertError::DiskFull),
            End::Exited(code) => return Err(failed(format!("exit status {code}"), outcome.stderr_tail)),
            End::Signalled(signal) => return Err(failed(format!("signal {signal}"), outcome.stderr_tail)),
        }
        let found = std::fs::metadata(self.target).map_err(ConvertError::Target)?.len();
        if found == length {
            return Ok(());
        }
        let message = format!("the result has {found} bytes instead of {length}");
        Err(failed("exit status 0".to_owned(), message))
    }

    fn program(&self) -> Option<PathBuf> {
        match self.program {
            Some(program) => program.is_file().then(|| program.to_path_buf()),
            None => PLACES.iter().map(PathBuf::from).find(|path| path.is_file()),
        }
    }
}

fn failed(end: String, message: String) -> ConvertError {
    ConvertError::Failed { end, message }
}

/// Reads `    (12.34/100%)\r` as it trickles in.
#[derive(Default)]
struct Percent {
    text: Vec<u8>,
}

impl Percent {
    fn feed(&mut self, piece: &[u8], total: u64, progress: &mut dyn FnMut(u64)) {
        for &byte in piece {
            match byte {
                b'(' => self.text.clear(),
                b'/' => {
                    if let Some(hundredths) = self.hundredths() {
                        progress(total / 10_000 * hundredths + total % 10_000 * hundredths / 10_000);
                    }
                    self.text.clear();
                }
                _ if self.text.len() < 16 => self.text.push(byte),
                _ => {}
            }
        }
    }

    fn hundredths(&self) -> Option<u64> {
        let text = std::str::from_utf8(&self.text).ok()?;
        let (whole, fraction) = text.trim().split_once('.')?;
        let value = whole
            .parse::<u64>()
            .ok()?
            .checked_mul(100)?
            .checked_add(fraction.get(..2)?.parse().ok()?)?;
        (value <= 10_000).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_percentages_however_they_are_cut() {
        let mut seen = Vec::new();
        let mut meter = Percent::default();
        for piece in [
            "    (0.0",
            "0/100%)\r    (12.34/1",
            "00%)\r    (100.00/100%)\r\n(999.99/100%) (x/y) (-1.00/",
        ] {
            meter.feed(piece.as_bytes(), 1_000_000, &mut |bytes| seen.push(bytes));
        }
        assert_eq!(seen, [0, 123_400, 1_000_000]);
    }

    #[test]
    fn names_the_package_when_the_program_is_missing() {
        let job = Flatten {
            program: Some(Path::new("/no/qemu-img")),
            source: Path::new("/dev/null"),
            target: Path::new("/no/target"),
            size_bytes: 512,
            limit: Duration::from_secs(1),
        };
        let error = job.run(&mut |_| (), &|| false).unwrap_err();
        assert!(error.to_string().contains("qemu-utils"));
    }
}
