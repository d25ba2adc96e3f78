//! Header extensions (qcow2 specification, "Header extensions"): what follows the header in its cluster.

/// Names the backing file's format.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Names feature bits for people.
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// Says where the bitmap directory is.
pub const BITMAPS: u32 = 0x2385_2875;
/// Says where the LUKS header is.
pub const ENCRYPTION: u32 = 0x0537_be77;
/// Names the external data file.
pub const DATA_FILE: u32 = 0x4441_5441;

/// Ends the list.
const END: u32 = 0;
/// Kind and length before the data of an extension, bytes.
const HEAD_BYTES: usize = 8;
/// Data of extensions is padded to this, bytes.
const PAD_BYTES: usize = 8;
/// One row of the feature name table, bytes: kind of feature, bit, name.
const FEATURE_ROW_BYTES: usize = 48;

/// Why header extensions are not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExtensionError {
    /// It runs into what follows the extensions.
    #[error("header extension {kind:#010x} at byte {offset} claims {len} bytes, and {room} are there")]
    TooLong {
        /// Its kind.
        kind: u32,
        /// Where it begins, bytes from the start of the extensions.
        offset: usize,
        /// Length it claims, bytes.
        len: u32,
        /// What is left for it, bytes.
        room: usize,
    },
    /// A length that this kind can not have.
    #[error("header extension {kind:#010x} has {len} bytes instead of {wanted}")]
    BadLength {
        /// Its kind.
        kind: u32,
        /// Its length, bytes.
        len: usize,
        /// What the specification gives it, bytes.
        wanted: usize,
    },
    /// A name that is no text.
    #[error("header extension {kind:#010x} holds a name that is not UTF-8 or has control characters")]
    NotText {
        /// Its kind.
        kind: u32,
    },
}

/// One extension, without its padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Which one.
    pub kind: u32,
    /// What it says.
    pub data: Vec<u8>,
}

/// All extensions of an image in their order; the unknown ones are kept as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extensions(Vec<Extension>);

/// The bitmaps extension (specification, "Bitmaps extension").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapsPointer {
    /// Number of bitmaps.
    pub count: u32,
    /// Length of the bitmap directory, bytes.
    pub directory_bytes: u64,
    /// Where the bitmap directory is, bytes from the start of the file.
    pub directory_offset: u64,
}

/// Which set of feature bits a name belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSet {
    /// Whoever does not know the bit must not open the image.
    Incompatible,
    /// Whoever does not know the bit may ignore it.
    Compatible,
    /// Whoever does not know the bit clears it before changing the image.
    Autoclear,
}

impl Extensions {
    /// Parses the bytes between the end of the header and the backing file's name, or the end of the first cluster.
    ///
    /// # Errors
    /// An extension is longer than the room for it.
    pub fn parse(area: &[u8]) -> Result<Self, ExtensionError> {
        let mut list = Vec::new();
        let mut offset = 0;
        while let Some((head, rest)) = area
            .get(offset..)
            .and_then(|rest| rest.split_first_chunk::<HEAD_BYTES>())
        {
            let [k0, k1, k2, k3, l0, l1, l2, l3] = *head;
            let kind = u32::from_be_bytes([k0, k1, k2, k3]);
            let len = u32::from_be_bytes([l0, l1, l2, l3]);
            if kind == END {
                break;
            }
            let data = usize::try_from(len).ok().and_then(|len| rest.get(..len));
            let Some(data) = data else {
                return Err(ExtensionError::TooLong {
                    kind,
                    offset,
                    len,
                    room: rest.len(),
                });
            };
            list.push(Extension {
                kind,
                data: data.to_vec(),
            });
            offset += HEAD_BYTES + data.len().next_multiple_of(PAD_BYTES);
        }
        Ok(Self(list))
    }

    /// The bytes to store, with the end marker.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.stored_bytes());
        for extension in &self.0 {
            bytes.extend_from_slice(&extension.kind.to_be_bytes());
            let len = u32::try_from(extension.data.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(&extension.data);
            bytes.resize(bytes.len().next_multiple_of(PAD_BYTES), 0);
        }
        bytes.extend_from_slice(&[0; HEAD_BYTES]);
        bytes
    }

    /// Length of [`Extensions::to_bytes`], bytes.
    pub fn stored_bytes(&self) -> usize {
        let each = |e: &Extension| HEAD_BYTES + e.data.len().next_multiple_of(PAD_BYTES);
        self.0.iter().map(each).sum::<usize>() + HEAD_BYTES
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Extension> {
        self.0.iter()
    }

    /// What the first extension of this kind says.
    pub fn get(&self, kind: u32) -> Option<&[u8]> {
        self.0.iter().find(|e| e.kind == kind).map(|e| e.data.as_slice())
    }

    /// Replaces what the extension of this kind says, in its place, or adds one at the end.
    pub fn set(&mut self, kind: u32, data: Vec<u8>) {
        match self.0.iter_mut().find(|e| e.kind == kind) {
            Some(extension) => extension.data = data,
            None => self.0.push(Extension { kind, data }),
        }
    }

    /// Takes all extensions of this kind away.
    pub fn remove(&mut self, kind: u32) {
        self.0.retain(|e| e.kind != kind);
    }

    /// The format of the backing file, if it is named.
    ///
    /// # Errors
    /// The name is no text.
    pub fn backing_format(&self) -> Result<Option<&str>, ExtensionError> {
        self.name(BACKING_FORMAT)
    }

    /// The external data file, if it is named.
    ///
    /// # Errors
    /// The name is no text.
    pub fn data_file(&self) -> Result<Option<&str>, ExtensionError> {
        self.name(DATA_FILE)
    }

    fn name(&self, kind: u32) -> Result<Option<&str>, ExtensionError> {
        let Some(data) = self.get(kind) else { return Ok(None) };
        match std::str::from_utf8(data) {
            Ok(name) if !name.chars().any(char::is_control) => Ok(Some(name)),
            _ => Err(ExtensionError::NotText { kind }),
        }
    }

    /// Where the bitmaps are, if the image says so. Means something only while autoclear bit 0 is set.
    ///
    /// # Errors
    /// The extension has a wrong length.
    pub fn bitmaps(&self) -> Result<Option<BitmapsPointer>, ExtensionError> {
        self.get(BITMAPS).map(BitmapsPointer::parse).transpose()
    }

    /// What the image itself calls the feature `bit` (0 to 63) of a set: for messages about unknown features. Anything that
    /// is not printable ASCII is replaced.
    pub fn feature_name(&self, set: FeatureSet, bit: u8) -> Option<String> {
        let rows = self.get(FEATURE_NAMES)?.chunks_exact(FEATURE_ROW_BYTES);
        for row in rows {
            let Some((&[row_set, row_bit], name)) = row.split_first_chunk::<2>() else {
                continue;
            };
            if row_set == set.number() && row_bit == bit {
                let printable = |&b: &u8| {
                    if b.is_ascii_graphic() || b == b' ' {
                        char::from(b)
                    } else {
                        '?'
                    }
                };
                return Some(name.iter().take_while(|&&b| b != 0).map(printable).collect());
            }
        }
        None
    }
}

impl FeatureSet {
    const fn number(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
        }
    }
}

impl BitmapsPointer {
    /// Length of the extension's data, bytes.
    const BYTES: usize = 24;

    fn parse(data: &[u8]) -> Result<Self, ExtensionError> {
        let bytes = <[u8; Self::BYTES]>::try_from(data).map_err(|_| ExtensionError::BadLength {
            kind: BITMAPS,
            len: data.len(),
            wanted: Self::BYTES,
        })?;
        let [c0, c1, c2, c3, _, _, _, _, rest @ ..] = bytes;
        let [s0, s1, s2, s3, s4, s5, s6, s7, o0, o1, o2, o3, o4, o5, o6, o7] = rest;
        Ok(Self {
            count: u32::from_be_bytes([c0, c1, c2, c3]),
            directory_bytes: u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            directory_offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
        })
    }

    /// The extension's data.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend_from_slice(&self.count.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.directory_bytes.to_be_bytes());
        bytes.extend_from_slice(&self.directory_offset.to_be_bytes());
        bytes
    }
}

/// The table of all feature names of the specification, as [`FEATURE_NAMES`] stores it.
pub fn feature_name_table() -> Vec<u8> {
    let names: [(FeatureSet, u8, &str); 8] = [
        (FeatureSet::Incompatible, 0, "dirty bit"),
        (FeatureSet::Incompatible, 1, "corrupt bit"),
        (FeatureSet::Incompatible, 2, "external data file"),
        (FeatureSet::Incompatible, 3, "compression type"),
        (FeatureSet::Incompatible, 4, "extended L2 entries"),
        (FeatureSet::Compatible, 0, "lazy refcounts"),
        (FeatureSet::Autoclear, 0, "bitmaps"),
        (FeatureSet::Autoclear, 1, "raw external data"),
    ];
    let mut table = Vec::with_capacity(names.len() * FEATURE_ROW_BYTES);
    for (set, bit, name) in names {
        table.extend_from_slice(&[set.number(), bit]);
        table.extend_from_slice(name.as_bytes());
        table.resize(table.len().next_multiple_of(FEATURE_ROW_BYTES), 0);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn unknown_extensions_survive_in_their_place() {
        let mut area = raw(0x1234_5678, b"\0\xffsomething");
        area.extend(raw(BACKING_FORMAT, b"raw"));
        area.extend(raw(0x8765_4321, b""));
        area.extend([0; 8]);
        let mut extensions = Extensions::parse(&area).unwrap();
        assert_eq!(extensions.to_bytes(), area);
        assert_eq!(extensions.stored_bytes(), area.len());
        assert_eq!(extensions.backing_format(), Ok(Some("raw")));
        extensions.set(BACKING_FORMAT, b"qcow2".to_vec());
        let kinds: Vec<u32> = extensions.iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [0x1234_5678, BACKING_FORMAT, 0x8765_4321]);
        extensions.remove(BACKING_FORMAT);
        assert_eq!(extensions.backing_format(), Ok(None));
        assert_eq!(Extensions::parse(&extensions.to_bytes()).unwrap(), extensions);
    }

    #[test]
    fn lengths_stay_inside_the_area() {
        let mut area = raw(7, &[1; 16]);
        area.truncate(23);
        assert_eq!(
            Extensions::parse(&area),
            Err(ExtensionError::TooLong {
                kind: 7,
                offset: 0,
                len: 16,
                room: 15
            })
        );
        let mut huge = 7u32.to_be_bytes().to_vec();
        huge.extend(u32::MAX.to_be_bytes());
        assert!(Extensions::parse(&huge).is_err());
        // The area may end without an end marker, and with a piece too short for anything.
        let whole = raw(7, &[1; 8]);
        assert_eq!(Extensions::parse(&whole).unwrap().iter().count(), 1);
        let ragged = [whole, vec![0xff; 7]].concat();
        assert_eq!(Extensions::parse(&ragged).unwrap().iter().count(), 1);
        assert_eq!(Extensions::parse(&[]).unwrap(), Extensions::default());
    }

    #[test]
    fn bitmaps_pointer_and_names_are_checked() {
        let mut extensions = Extensions::default();
        let pointer = BitmapsPointer {
            count: 3,
            directory_bytes: 96,
            directory_offset: 0x9_0000,
        };
        extensions.set(BITMAPS, pointer.to_bytes());
        assert_eq!(extensions.bitmaps(), Ok(Some(pointer)));
        extensions.set(BITMAPS, vec![0; 23]);
        assert!(extensions.bitmaps().is_err());
        extensions.set(DATA_FILE, b"a\nb".to_vec());
        assert_eq!(extensions.data_file(), Err(ExtensionError::NotText { kind: DATA_FILE }));
    }

    #[test]
    fn features_are_named_by_the_image() {
        let mut extensions = Extensions::default();
        assert_eq!(extensions.feature_name(FeatureSet::Incompatible, 4), None);
        let mut table = feature_name_table();
        assert_eq!(table.len() % 48, 0);
        table.extend([0, 63]);
        table.extend(*b"evil\x1b[2J");
        table.resize(table.len().next_multiple_of(48), 0);
        extensions.set(FEATURE_NAMES, table);
        let name = |set, bit| extensions.feature_name(set, bit);
        assert_eq!(
            name(FeatureSet::Incompatible, 4).as_deref(),
            Some("extended L2 entries")
        );
        assert_eq!(name(FeatureSet::Autoclear, 1).as_deref(), Some("raw external data"));
        assert_eq!(name(FeatureSet::Incompatible, 63).as_deref(), Some("evil?[2J"));
        assert_eq!(name(FeatureSet::Compatible, 63), None);
    }
}
