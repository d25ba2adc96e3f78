//! Foreign formats to raw or qcow2, by `qemu-img` behind walls.
//!
//! ```text
//!   inspect (ours) ──► qemu-img info: same format, same size, no references ──► qemu-img convert ──► inspect the result
//! ```
//!
//! `qemu-img` never guesses: `-f` is what our inspection found. Either run sees the source for reading, the second the target for
//! writing, and nothing else of the host; no network; bounded in processor time, memory, file size and wall time; killed when
//! asked, and with the daemon.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk::probe::Format;
use sandbox::{ConfinedCommand, End, Limits, Outcome};

mod error;
mod info;
mod progress;

pub use error::ConvertError;
use info::Info;
use progress::Percent;

use crate::inspect::{self, Expectations, Inspection, Inspector, Wrapping};

/// Where `qemu-img` is looked for.
const PLACES: [&str; 3] = ["/usr/bin/qemu-img", "/usr/local/bin/qemu-img", "/bin/qemu-img"];
/// A raw disk's length is a multiple of this, bytes.
const SECTOR: u64 = 512;
/// Longest time `qemu-img info` may take: it reads a header.
const INFO_TIME: Duration = Duration::from_secs(30);
/// What a qcow2 of default geometry takes beyond its data: tables of 8 bytes a cluster and refcounts of 2, so 1/1024 is ample.
const QCOW2_EXTRA_SHIFT: u32 = 10;
/// And for what is there once, bytes.
const QCOW2_EXTRA_BYTES: u64 = 16 << 20;

/// What a conversion makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The disk's bytes, with holes for zeros.
    Raw,
    /// qcow2 version 3, clusters of 64 KiB.
    Qcow2,
}

/// What a conversion may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertLimits {
    /// Largest disk, bytes.
    pub max_virtual_bytes: u64,
    /// Wall time of the conversion.
    pub time: Duration,
    /// Processor time of all threads.
    pub cpu: Duration,
    /// Address space, bytes: 200 MiB of libraries, thread stacks, tables of the image.
    pub address_space_bytes: u64,
}

impl ConvertLimits {
    /// An hour, all of which may be spent computing, and 4 GiB of address space.
    pub const fn up_to(max_virtual_bytes: u64) -> Self {
        Self {
            max_virtual_bytes,
            time: Duration::from_secs(3600),
            cpu: Duration::from_secs(3600),
            address_space_bytes: 4 << 30,
        }
    }
}

/// One conversion.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// `qemu-img`, if not in one of the usual places.
    pub program: Option<PathBuf>,
    /// The image: a file with an absolute path.
    pub source: PathBuf,
    /// The file to be made, with an absolute path; must not exist. It is removed again if the conversion fails.
    pub target: PathBuf,
    /// What to make.
    pub format: Target,
    /// What it may use.
    pub limits: ConvertLimits,
}

/// What came of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Converted {
    /// What the source was.
    pub source: Inspection,
    /// Size of the disk, bytes.
    pub virtual_size_bytes: u64,
    /// Length of the target, bytes, with its holes.
    pub size_bytes: u64,
}

impl Conversion {
    /// Blocks until done. `progress` gets bytes of the disk; `stop` is asked at least ten times a second, and true kills the
    /// conversion.
    ///
    /// # Errors
    /// See [`ConvertError`]. No target is left behind.
    pub fn run(&self, progress: &mut dyn FnMut(u64), stop: &dyn Fn() -> bool) -> Result<Converted, ConvertError> {
        let program = self.program().ok_or(ConvertError::NoProgram)?;
        for path in [&self.source, &self.target] {
            // A relative name with a colon would be a protocol to qemu-img.
            if !path.is_absolute() {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path");
                return Err(ConvertError::File(path.clone(), source));
            }
        }
        let began = Instant::now();
        let source = self.inspect(&self.source, None)?;
        let driver = driver(source.format).ok_or(ConvertError::NotConvertible(source.format))?;
        let info = self.info(&program, driver, stop)?;
        let size = info.checked(driver, source, self.limits.max_virtual_bytes)?;
        let left = self.limits.time.saturating_sub(began.elapsed());
        self.create(size)?;
        let result = self
            .convert(&program, driver, size, left, (progress, stop))
            .and_then(|()| self.check_output(size));
        match result {
            Ok(size_bytes) => Ok(Converted {
                source,
                virtual_size_bytes: size,
                size_bytes,
            }),
            Err(error) => {
                let _ = fs::remove_file(&self.target); // The first error is the one to be told.
                Err(error)
            }
        }
    }

    fn inspect(&self, path: &Path, claimed: Option<Format>) -> Result<Inspection, ConvertError> {
        let mut file = File::open(path).map_err(|error| ConvertError::File(path.to_path_buf(), error))?;
        let expected = Expectations {
            claimed,
            wrapping: Wrapping::None,
            ..Expectations::up_to(self.limits.max_virtual_bytes)
        };
        Inspector::inspect(&mut file, expected).map_err(|error| match error {
            inspect::InspectError::Refused(refusal) => ConvertError::Refused(refusal),
            inspect::InspectError::Read(error) => ConvertError::File(path.to_path_buf(), error),
        })
    }

    fn info(&self, program: &Path, driver: &str, stop: &dyn Fn() -> bool) -> Result<Info, ConvertError> {
        let limits = Limits {
            cpu: INFO_TIME,
            address_space_bytes: self.limits.address_space_bytes,
            ..Limits::default()
        };
        let command = ["info", "--output=json", "-f", driver]
            .iter()
            .fold(ConfinedCommand::new(program, INFO_TIME), |command, word| {
                command.arg(word)
            })
            .arg(&self.source)
            .read(&self.source)
            .limits(limits);
        let mut text = Vec::new();
        let mut keep = |piece: &[u8]| {
            let room = info::TEXT_MAX.saturating_sub(text.len());
            text.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
        };
        let outcome = command.run(&mut keep, stop).map_err(ConvertError::Run)?;
        succeeded(outcome, INFO_TIME)?;
        Info::parse(&text)
    }

    /// The target, empty: the child may not make files.
    fn create(&self, size: u64) -> Result<(), ConvertError> {
        let file = OpenOptions::new().write(true).create_new(true).open(&self.target);
        let made = file.and_then(|file| match self.format {
            Target::Raw => file.set_len(raw_length(size).ok_or(io::ErrorKind::FileTooLarge)?),
            Target::Qcow2 => Ok(()),
        });
        made.map_err(|error| ConvertError::from_target(&self.target, error))
    }

    fn convert(
        &self,
        program: &Path,
        driver: &str,
        size: u64,
        time: Duration,
        (progress, stop): (&mut dyn FnMut(u64), &dyn Fn() -> bool),
    ) -> Result<(), ConvertError> {
        let length = raw_length(size).unwrap_or(u64::MAX);
        let (file_size_bytes, words): (u64, &[&str]) = match self.format {
            // The target is there and is all holes: zeros need not be written.
            Target::Raw => (length, &["-O", "raw", "-n", "--target-is-zero"]),
            Target::Qcow2 => {
                let extra = (length >> QCOW2_EXTRA_SHIFT).saturating_add(QCOW2_EXTRA_BYTES);
                (
                    length.saturating_add(extra),
                    &["-O", "qcow2", "-o", "compat=1.1,cluster_size=65536"],
                )
            }
        };
        let limits = Limits {
            cpu: self.limits.cpu,
            address_space_bytes: self.limits.address_space_bytes,
            file_size_bytes,
            ..Limits::default()
        };
        let command = ["convert", "-p", "-f", driver]
            .iter()
            .chain(words)
            .fold(ConfinedCommand::new(program, time), ConfinedCommand::arg)
            .arg(&self.source)
            .arg(&self.target)
            .read(&self.source)
            .write(&self.target)
            .limits(limits);
        let mut meter = Percent::default();
        let outcome = command.run(&mut |piece| meter.feed(piece, size, progress), stop);
        succeeded(outcome.map_err(ConvertError::Run)?, self.limits.time)
    }

    /// The target is what was asked for; its length, bytes.
    fn check_output(&self, size: u64) -> Result<u64, ConvertError> {
        let wrong = |what: String| Err(ConvertError::Output(what));
        match self.format {
            Target::Raw => {
                let found = fs::metadata(&self.target)
                    .map_err(|e| ConvertError::from_target(&self.target, e))?
                    .len();
                if raw_length(size) == Some(found) {
                    Ok(found)
                } else {
                    wrong(format!("{found} bytes for a disk of {size}"))
                }
            }
            Target::Qcow2 => match self.inspect(&self.target, Some(Format::Qcow2)) {
                Ok(made) if made.virtual_size_bytes == Some(size) => Ok(made.size_bytes),
                Ok(made) => wrong(format!(
                    "a disk of {:?} bytes instead of {size}",
                    made.virtual_size_bytes
                )),
                Err(error) => wrong(error.to_string()),
            },
        }
    }

    fn program(&self) -> Option<PathBuf> {
        match &self.program {
            Some(program) => program.is_file().then(|| program.clone()),
            None => PLACES.iter().map(PathBuf::from).find(|path| path.is_file()),
        }
    }
}

/// What `qemu-img` calls a format; `None` for what is not converted.
const fn driver(format: Format) -> Option<&'static str> {
    match format {
        Format::Vmdk => Some("vmdk"),
        Format::Vhd => Some("vpc"),
        Format::Vhdx => Some("vhdx"),
        Format::Vdi => Some("vdi"),
        Format::Qcow2 => Some("qcow2"),
        _ => None,
    }
}

fn raw_length(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(SECTOR)
}

fn succeeded(outcome: Outcome, limit: Duration) -> Result<(), ConvertError> {
    for gap in &outcome.gaps {
        tracing::warn!(program = "qemu-img", "{gap}");
    }
    let message = outcome.stderr_tail;
    match outcome.end {
        End::Exited(0) => Ok(()),
        End::Stopped => Err(ConvertError::Cancelled),
        End::DeadlinePassed => Err(ConvertError::TooSlow { limit }),
        _ if message.contains("No space left on device") => Err(ConvertError::DiskFull),
        End::Exited(status) => Err(ConvertError::Failed { status, message }),
        End::Signalled(signal) => Err(ConvertError::Killed { signal, message }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_without_a_program_or_with_relative_names() {
        let mut job = Conversion {
            program: Some("/no/qemu-img".into()),
            source: "/dev/null".into(),
            target: "/no/target".into(),
            format: Target::Raw,
            limits: ConvertLimits::up_to(1 << 20),
        };
        let error = job.run(&mut |_| (), &|| false).unwrap_err();
        assert_eq!(error.code(), "no_converter");
        assert!(error.to_string().contains("qemu-utils"));
        job.program = Some("/bin/sh".into());
        job.source = "nbd:host:10809".into();
        assert_eq!(job.run(&mut |_| (), &|| false).unwrap_err().code(), "file_unusable");
    }
}
