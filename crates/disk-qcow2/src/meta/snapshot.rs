//! The snapshot table (qcow2 specification, "Snapshots").

/// Most snapshots an image may have. QEMU's limit.
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// Longest snapshot table, bytes. QEMU takes 64 MiB; this is 256 bytes for each of the most snapshots.
pub const MAX_TABLE_BYTES: u64 = 16 << 20;
/// Longest extra data of one entry, bytes. QEMU's limit.
pub const MAX_EXTRA_BYTES: u32 = 1024;
/// What every entry begins with, bytes.
pub const FIXED_BYTES: usize = 40;
/// Entries begin at multiples of this, bytes.
const ALIGN_BYTES: usize = 8;
/// Extra data a version 3 image has at least, bytes: size of the VM state and of the disk.
const V3_EXTRA_BYTES: usize = 16;

/// Why a snapshot table is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SnapshotError {
    /// The table ends inside of an entry.
    #[error("snapshot entry is cut off: {needed} bytes wanted, {there} are there")]
    Short {
        /// Length of the entry, bytes.
        needed: usize,
        /// What is there, bytes.
        there: usize,
    },
    /// More extra data than anyone writes.
    #[error("snapshot entry has {len} bytes of extra data: at most {MAX_EXTRA_BYTES} are accepted")]
    ExtraTooLong {
        /// Its length, bytes.
        len: u32,
    },
    /// A text too long to store.
    #[error("snapshot {what} of {len} bytes is too long: at most 65535 can be stored")]
    TextTooLong {
        /// Which text.
        what: &'static str,
        /// Its length, bytes.
        len: usize,
    },
}

/// One entry of the snapshot table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Where its L1 table is, bytes from the start of the file.
    pub l1_offset: u64,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// Unique identifier; QEMU counts from "1".
    pub id: Vec<u8>,
    /// Name an operator gave.
    pub name: Vec<u8>,
    /// When it was made, seconds since 1970.
    pub date_sec: u32,
    /// When it was made, nanoseconds within the second.
    pub date_nsec: u32,
    /// How long the machine had been running, nanoseconds.
    pub vm_clock_nsec: u64,
    /// Length of the VM state as stored in the fixed part, bytes (0 when it only fits the extra data).
    pub vm_state_bytes_32: u32,
    /// Length of the VM state, bytes; extra data, version 3.
    pub vm_state_bytes: Option<u64>,
    /// Size of the disk, bytes; extra data, version 3.
    pub disk_bytes: Option<u64>,
    /// Instructions counted when it was made; extra data. All ones: not recorded.
    pub icount: Option<u64>,
    /// Extra data beyond what is known here, kept as it is.
    pub unknown_extra: Vec<u8>,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u16::from_be_bytes(field.copied().unwrap_or_default())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_be_bytes(field.copied().unwrap_or_default())
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|field| u64::from_be_bytes(*field))
}

impl Snapshot {
    /// Length of the entry that begins with these bytes (at least [`FIXED_BYTES`] of them), padding included, bytes.
    ///
    /// # Errors
    /// There are fewer bytes, or the extra data is longer than accepted.
    pub fn entry_bytes(fixed: &[u8]) -> Result<usize, SnapshotError> {
        if fixed.len() < FIXED_BYTES {
            return Err(SnapshotError::Short {
                needed: FIXED_BYTES,
                there: fixed.len(),
            });
        }
        let extra = be32(fixed, 36);
        if extra > MAX_EXTRA_BYTES {
            return Err(SnapshotError::ExtraTooLong { len: extra });
        }
        let texts = usize::from(be16(fixed, 12)) + usize::from(be16(fixed, 14));
        let len = FIXED_BYTES + extra as usize + texts;
        Ok(len.next_multiple_of(ALIGN_BYTES))
    }

    /// Parses one entry. The padding behind it may be missing.
    ///
    /// # Errors
    /// It is cut off, or the extra data is longer than accepted.
    pub fn parse(entry: &[u8]) -> Result<Self, SnapshotError> {
        Self::entry_bytes(entry)?;
        let extra_bytes = be32(entry, 36) as usize;
        let id_bytes = usize::from(be16(entry, 12));
        let needed = FIXED_BYTES + extra_bytes + id_bytes + usize::from(be16(entry, 14));
        let short = SnapshotError::Short {
            needed,
            there: entry.len(),
        };
        let (_, variable) = entry
            .get(..needed)
            .and_then(|entry| entry.split_at_checked(FIXED_BYTES))
            .ok_or(short)?;
        let (extra, texts) = variable.split_at_checked(extra_bytes).unwrap_or((variable, &[]));
        let (id, name) = texts.split_at_checked(id_bytes).unwrap_or((texts, &[]));
        Ok(Self {
            l1_offset: be64(entry, 0).unwrap_or_default(),
            l1_entries: be32(entry, 8),
            id: id.to_vec(),
            name: name.to_vec(),
            date_sec: be32(entry, 16),
            date_nsec: be32(entry, 20),
            vm_clock_nsec: be64(entry, 24).unwrap_or_default(),
            vm_state_bytes_32: be32(entry, 32),
            vm_state_bytes: be64(extra, 0),
            disk_bytes: be64(extra, 8),
            icount: be64(extra, 16),
            unknown_extra: unknown_part(extra).to_vec(),
        })
    }

    /// Adds what a version 3 image must have (specification: at least 16 bytes of extra data) and a version 2 entry may lack.
    pub fn complete_for_v3(&mut self, disk_bytes: u64) {
        if self.vm_state_bytes.is_none() {
            self.vm_state_bytes = Some(u64::from(self.vm_state_bytes_32));
            // Less than one field was there, and what it said is not known.
            self.unknown_extra.clear();
        }
        if self.disk_bytes.is_none() {
            self.disk_bytes = Some(disk_bytes);
            self.unknown_extra.clear();
        }
    }

    /// The entry's bytes, padding included.
    ///
    /// # Errors
    /// Identifier, name or extra data are too long to store.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut extra = Vec::with_capacity(V3_EXTRA_BYTES + 8 + self.unknown_extra.len());
        let known = [self.vm_state_bytes, self.disk_bytes, self.icount];
        for field in known.iter().map_while(|field| *field) {
            extra.extend_from_slice(&field.to_be_bytes());
        }
        extra.extend_from_slice(&self.unknown_extra);
        let text_len = |what, text: &[u8]| {
            u16::try_from(text.len()).map_err(|_| SnapshotError::TextTooLong { what, len: text.len() })
        };
        let id_len = text_len("identifier", &self.id)?;
        let name_len = text_len("name", &self.name)?;
        let extra_len = u32::try_from(extra.len()).unwrap_or(u32::MAX);
        if extra_len > MAX_EXTRA_BYTES {
            return Err(SnapshotError::ExtraTooLong { len: extra_len });
        }
        let mut bytes = Vec::with_capacity(FIXED_BYTES + extra.len() + self.id.len() + self.name.len() + ALIGN_BYTES);
        bytes.extend_from_slice(&self.l1_offset.to_be_bytes());
        bytes.extend_from_slice(&self.l1_entries.to_be_bytes());
        bytes.extend_from_slice(&id_len.to_be_bytes());
        bytes.extend_from_slice(&name_len.to_be_bytes());
        bytes.extend_from_slice(&self.date_sec.to_be_bytes());
        bytes.extend_from_slice(&self.date_nsec.to_be_bytes());
        bytes.extend_from_slice(&self.vm_clock_nsec.to_be_bytes());
        bytes.extend_from_slice(&self.vm_state_bytes_32.to_be_bytes());
        bytes.extend_from_slice(&extra_len.to_be_bytes());
        bytes.extend_from_slice(&extra);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.name);
        bytes.resize(bytes.len().next_multiple_of(ALIGN_BYTES), 0);
        Ok(bytes)
    }

    /// Length of the VM state, bytes.
    pub fn vm_state_len(&self) -> u64 {
        self.vm_state_bytes.unwrap_or(u64::from(self.vm_state_bytes_32))
    }
}

/// What is left of the extra data when the whole known fields are taken.
fn unknown_part(extra: &[u8]) -> &[u8] {
    let known = (extra.len() / 8).min(3) * 8;
    extra.get(known..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Snapshot {
        Snapshot {
            l1_offset: 0x5_0000,
            l1_entries: 2,
            id: b"1".to_vec(),
            name: b"before upgrade".to_vec(),
            date_sec: 1_700_000_000,
            date_nsec: 5,
            vm_clock_nsec: 77,
            vm_state_bytes_32: 0,
            vm_state_bytes: Some(1 << 33),
            disk_bytes: Some(10 << 20),
            icount: Some(u64::MAX),
            unknown_extra: vec![1, 2, 3],
        }
    }

    #[test]
    fn entries_round_trip_whatever_extra_data_they_have() {
        let full = sample();
        let none = Snapshot {
            vm_state_bytes: None,
            disk_bytes: None,
            icount: None,
            ..sample()
        };
        let two = Snapshot {
            icount: None,
            unknown_extra: vec![],
            ..sample()
        };
        for snapshot in [full, none, two] {
            let bytes = snapshot.to_bytes().unwrap();
            assert_eq!(Snapshot::entry_bytes(&bytes), Ok(bytes.len()));
            assert_eq!(Snapshot::parse(&bytes), Ok(snapshot));
        }
    }

    #[test]
    fn a_version_2_entry_gets_what_version_3_needs() {
        let mut old = Snapshot {
            vm_state_bytes_32: 9,
            vm_state_bytes: None,
            disk_bytes: None,
            icount: None,
            ..sample()
        };
        old.complete_for_v3(4096);
        assert_eq!((old.vm_state_len(), old.disk_bytes), (9, Some(4096)));
        assert_eq!(Snapshot::parse(&old.to_bytes().unwrap()), Ok(old));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = Snapshot {
            unknown_extra: vec![0; 8],
            id: b"12".to_vec(),
            ..sample()
        }
        .to_bytes()
        .unwrap();
        for len in 0..FIXED_BYTES + 32 + 2 + 14 {
            assert!(Snapshot::parse(&bytes[..len]).is_err(), "{len}");
        }
        assert!(Snapshot::parse(&bytes).is_ok());
        let mut greedy = bytes;
        greedy[36..40].copy_from_slice(&1025u32.to_be_bytes());
        assert_eq!(Snapshot::parse(&greedy), Err(SnapshotError::ExtraTooLong { len: 1025 }));
        let long = Snapshot {
            name: vec![b'x'; 65_536],
            ..sample()
        };
        assert!(matches!(
            long.to_bytes(),
            Err(SnapshotError::TextTooLong { what: "name", .. })
        ));
    }
}
