//! What an image is, found out while its bytes pass.
//!
//! An [`Inspector`] is shown the stream piece by piece. It keeps the first 64 KiB, one window of up to 128 KiB at a time and the last
//! 1 KiB, copies nothing else, and speaks up as soon as it has seen enough to refuse. The checks are those that the image
//! service's own format inspector documents, and more: see [`Refusal`].

use std::io::{self, Read, Seek, SeekFrom};

use disk::probe::{Format, Packing};

mod found;
mod marks;
mod partitions;
mod qcow2;
mod refusal;
mod stage;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use found::{Need, Settled};
pub use partitions::Partitions;
pub use refusal::{InspectError, Refusal};
use stage::{HEAD_BYTES, Stage};
pub use vmdk::{DESCRIPTION_MAX as VMDK_DESCRIPTION_MAX, Descriptor as VmdkDescriptor};

/// How much of the end is kept, bytes: a VHD's footer is the last 512, a VMDK's begins 1024 before the end.
const TAIL_BYTES: usize = 1024;

/// What the bytes came out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wrapping {
    /// Nothing: they are the file.
    #[default]
    None,
    /// A compressed file: they must not be compressed again.
    Compression,
    /// An archive: they must be neither an archive nor compressed.
    Archive,
}

/// What an image has to be to be taken.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// What somebody said it is; content that is something else is refused.
    pub claimed: Option<Format>,
    /// Formats that are taken.
    pub allowed: Vec<Format>,
    /// What the bytes came out of.
    pub wrapping: Wrapping,
    /// Largest disk as its guest sees it, bytes.
    pub max_virtual_bytes: u64,
    /// Longest image, bytes.
    pub max_bytes: u64,
}

impl Expectations {
    /// Formats that are stored or can be converted: raw, ISO, qcow2, vmdk, vhd, vhdx, vdi, and OVA (a tape archive).
    pub const FORMATS: [Format; 8] = [
        Format::Raw,
        Format::Iso9660,
        Format::Qcow2,
        Format::Vmdk,
        Format::Vhd,
        Format::Vhdx,
        Format::Vdi,
        Format::Packed(Packing::Tar),
    ];

    /// No claim; all of [`Expectations::FORMATS`]; `max_virtual_bytes` for the disk and its file, whose format may take an
    /// eighth and 64 MiB more.
    pub fn up_to(max_virtual_bytes: u64) -> Self {
        let room = (max_virtual_bytes / 8).saturating_add(64 << 20);
        Self {
            claimed: None,
            allowed: Self::FORMATS.to_vec(),
            wrapping: Wrapping::None,
            max_virtual_bytes,
            max_bytes: max_virtual_bytes.saturating_add(room),
        }
    }

    /// With a claim by the name the image service's API uses: `raw`, `iso`, `qcow2`, `vmdk`, `vhd`, `vhdx`, `vdi`, `ova`.
    /// `None`: no such format.
    #[must_use]
    pub fn claimed_by_name(mut self, name: &str) -> Option<Self> {
        self.claimed = Some(match name {
            "raw" => Format::Raw,
            "iso" => Format::Iso9660,
            "qcow2" => Format::Qcow2,
            "vmdk" => Format::Vmdk,
            "vhd" => Format::Vhd,
            "vhdx" => Format::Vhdx,
            "vdi" => Format::Vdi,
            "ova" => Format::Packed(Packing::Tar),
            _ => return None,
        });
        Some(self)
    }
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspection {
    /// Its format.
    pub format: Format,
    /// Size of the disk as a guest sees it, bytes; an archive has none.
    pub virtual_size_bytes: Option<u64>,
    /// Length of the image, bytes.
    pub size_bytes: u64,
    /// The partition table at the start of a raw disk, an ISO (a hybrid then) or a fixed VHD.
    pub partitions: Option<Partitions>,
}

impl Inspection {
    /// Whether [`crate::convert`] has to make a disk of it that machines can use.
    pub const fn is_foreign(&self) -> bool {
        is_foreign(self.format)
    }
}

/// See [`Inspection::is_foreign`].
pub(crate) const fn is_foreign(format: Format) -> bool {
    matches!(format, Format::Vmdk | Format::Vhd | Format::Vhdx | Format::Vdi)
}

/// Watches an image pass.
#[derive(Debug)]
pub struct Inspector {
    expected: Expectations,
    stage: Stage,
    partitions: Option<Partitions>,
    /// The first bytes.
    head: Vec<u8>,
    /// What the stage waits for, if that is not the head; from `need.at` on without a gap.
    window: Vec<u8>,
    /// The last bytes that passed.
    tail: Vec<u8>,
    /// Bytes that passed.
    position: u64,
}

impl Inspector {
    /// For one image.
    pub fn new(expected: Expectations) -> Self {
        Self {
            expected,
            stage: Stage::Head,
            partitions: None,
            head: Vec::new(),
            window: Vec::new(),
            tail: Vec::with_capacity(2 * TAIL_BYTES),
            position: 0,
        }
    }

    /// Inspects an open image; reads a few places only. Blocks.
    ///
    /// # Errors
    /// It can not be read, or is refused.
    pub fn inspect(image: &mut (impl Read + Seek), expected: Expectations) -> Result<Inspection, InspectError> {
        let mut inspector = Self::new(expected);
        let size = image.seek(SeekFrom::End(0)).map_err(InspectError::Read)?;
        inspector.check_length(size)?;
        let mut buffer = Vec::new();
        let mut read = |at: u64, len: u64, buffer: &mut Vec<u8>| -> io::Result<()> {
            buffer.clear();
            image.seek(SeekFrom::Start(at))?;
            (&mut *image).take(len).read_to_end(buffer).map(drop)
        };
        while let Some((at, len)) = inspector.missing() {
            let len = (len as u64).min(size.saturating_sub(at));
            if len == 0 {
                break;
            }
            read(at, len, &mut buffer).map_err(InspectError::Read)?;
            if buffer.is_empty() {
                break; // It became shorter while it was looked at; the end will tell.
            }
            inspector.position = at;
            inspector.feed(&buffer)?;
        }
        let end = (TAIL_BYTES as u64).min(size);
        read(size - end, end, &mut buffer).map_err(InspectError::Read)?;
        inspector.tail = buffer;
        inspector.position = size;
        Ok(inspector.finish()?)
    }

    /// Shows the next bytes.
    ///
    /// # Errors
    /// The image is refused, and nothing that comes can change it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.check_length(self.position.saturating_add(bytes.len() as u64))?;
        let start = self.position;
        // Each turn fills a window or ends: as many turns as there are stages.
        while let Some((at, len)) = self.missing() {
            let from = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
            let Some(rest) = bytes.get(from..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let piece = rest.get(..len.min(rest.len())).unwrap_or_default();
            match self.stage {
                Stage::Head => self.head.extend_from_slice(piece),
                _ => self.window.extend_from_slice(piece),
            }
            if piece.len() < len {
                break;
            }
            self.advance()?;
        }
        self.keep_tail(bytes);
        self.position = start.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// What the image is, once 64 KiB have passed. A raw disk may still turn out to be a fixed VHD at its end.
    pub fn format_so_far(&self) -> Option<Format> {
        self.stage.format()
    }

    /// What an image is that was shown whole and is shorter than 64 KiB, so that [`Inspector::format_so_far`] does not know. An
    /// archive has to be opened however small it is.
    ///
    /// # Errors
    /// The image is refused.
    pub fn judge_short(&mut self) -> Result<Format, Refusal> {
        if self.position == 0 {
            return Err(Refusal::Empty);
        }
        if matches!(self.stage, Stage::Head) {
            self.advance()?;
        }
        self.stage.format().ok_or(Refusal::Empty)
    }

    /// The partition table, once 64 KiB have passed.
    pub fn partitions_so_far(&self) -> Option<Partitions> {
        self.partitions
    }

    /// All has passed.
    ///
    /// # Errors
    /// The image is refused.
    pub fn finish(mut self) -> Result<Inspection, Refusal> {
        let format = self.judge_short()?;
        if let Some((at, len)) = self.missing() {
            return Err(Refusal::Truncated {
                format,
                needed_bytes: at.saturating_add(len as u64),
                found_bytes: self.position,
            });
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Head);
        let Stage::Settled(settled, vmdk) = stage else {
            return Err(Refusal::Empty);
        };
        let settled = self.judge_end(settled)?;
        if let Some(header) = vmdk {
            header.check_end(&self.tail)?;
        }
        if settled.least_bytes > self.position {
            return Err(Refusal::Truncated {
                format: settled.format,
                needed_bytes: settled.least_bytes,
                found_bytes: self.position,
            });
        }
        let archive = matches!(settled.format, Format::Packed(_));
        let virtual_size_bytes = settled.virtual_size_bytes.or((!archive).then_some(self.position));
        self.check_virtual(virtual_size_bytes)?;
        Ok(Inspection {
            format: settled.format,
            virtual_size_bytes,
            size_bytes: self.position,
            partitions: self.partitions,
        })
    }

    /// What the end adds: footers.
    fn judge_end(&self, settled: Settled) -> Result<Settled, Refusal> {
        let ends_as_vhd = marks::all(&[], &self.tail, self.position).contains(&Format::Vhd);
        let settled = match settled.format {
            Format::Vhd => vhd::judge_end(&self.tail, self.position, Some(settled))?,
            Format::Raw if ends_as_vhd => vhd::judge_end(&self.tail, self.position, None)?,
            other if ends_as_vhd => return Err(Refusal::Polyglot(other, Format::Vhd)),
            _ => settled,
        };
        // What was undecided at the start is decided now.
        stage::check_kind(settled.format, self.partitions, &self.expected)?;
        if settled.format == Format::Raw {
            let Expectations { claimed, allowed, .. } = &self.expected;
            match claimed {
                Some(claimed) if *claimed != Format::Raw => {
                    return Err(Refusal::Mismatch {
                        claimed: *claimed,
                        found: Format::Raw,
                    });
                }
                _ if !allowed.contains(&Format::Raw) => return Err(Refusal::NotAllowed(Format::Raw)),
                _ => {}
            }
        }
        Ok(settled)
    }

    /// Where the stage's bytes go on, and how many it lacks.
    fn missing(&self) -> Option<(u64, usize)> {
        let Need { at, len } = self.stage.need()?;
        let have = match self.stage {
            Stage::Head => self.head.len(),
            _ => self.window.len(),
        };
        Some((at.saturating_add(have as u64), len.saturating_sub(have))).filter(|(_, lacks)| *lacks > 0)
    }

    /// The stage has what it waited for, or there is no more.
    fn advance(&mut self) -> Result<(), Refusal> {
        let stage = std::mem::replace(&mut self.stage, Stage::Head);
        self.stage = match stage {
            Stage::Head => {
                let verdict = stage::judge_head(&self.head, &self.expected)?;
                self.partitions = verdict.partitions;
                verdict.stage
            }
            later => later.next(&std::mem::take(&mut self.window))?,
        };
        if let Stage::Settled(settled, _) = &self.stage {
            self.check_virtual(settled.virtual_size_bytes)?;
        }
        // The next window may begin within the head, or lie in it whole.
        if let Some(Need { at, len }) = self.stage.need()
            && let Some(rest) = usize::try_from(at).ok().and_then(|at| self.head.get(at..))
        {
            self.window = rest.get(..len.min(rest.len())).unwrap_or_default().to_vec();
            if self.window.len() == len {
                return self.advance();
            }
        }
        if self.stage.need().is_none() {
            self.head = Vec::new();
        }
        Ok(())
    }

    fn check_length(&self, size: u64) -> Result<(), Refusal> {
        let limit_bytes = self.expected.max_bytes;
        if size > limit_bytes {
            Err(Refusal::Bytes { limit_bytes })
        } else {
            Ok(())
        }
    }

    fn check_virtual(&self, size: Option<u64>) -> Result<(), Refusal> {
        let limit_bytes = self.expected.max_virtual_bytes;
        match size {
            Some(size_bytes) if size_bytes > limit_bytes => Err(Refusal::VirtualSize {
                size_bytes,
                limit_bytes,
            }),
            Some(0) => Err(Refusal::Empty),
            _ => Ok(()),
        }
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let last = bytes.get(bytes.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
        let keep = TAIL_BYTES.saturating_sub(last.len()).min(self.tail.len());
        self.tail.drain(..self.tail.len() - keep);
        self.tail.extend_from_slice(last);
    }
}

/// How much an [`Inspector`] keeps at most, bytes.
pub const KEPT_BYTES: usize = HEAD_BYTES + (128 << 10) + 2 * TAIL_BYTES;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
