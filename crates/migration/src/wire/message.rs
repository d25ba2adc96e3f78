//! All frames but those of pages.

use super::cursor::{Cursor, put_text};
use super::frame::{FRAME_HEADER_BYTES, WireError, seal_frame};
use crate::section::Section;

/// First bytes of every stream.
pub const MAGIC: [u8; 8] = *b"KARATMIG";
/// Oldest version of the protocol that is spoken.
pub const VERSION_MIN: u16 = 1;
/// Newest version of the protocol that is spoken.
pub const VERSION_MAX: u16 = 1;

/// Which machine, as 16 bytes of its UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineId(pub [u8; 16]);

/// Names one attempt to move one machine. Both sides were told it by whoever arranged the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The migration.
    pub migration: [u8; 16],
    /// Random, never used twice: what a departed machine's record is kept under, and what a stranger does not know.
    pub token: [u8; 16],
}

/// What may be used on the way; bits as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offers(u32);

impl Offers {
    /// Raw pages may be compressed.
    pub const ZSTD: Self = Self(1);
    /// Pages may be sent as what changed.
    pub const DELTA: Self = Self(2);
    /// The machine may start before all of its memory is there.
    pub const POST_COPY: Self = Self(4);

    /// None.
    pub const fn none() -> Self {
        Self(0)
    }

    /// Those of either.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of both. Bits that we do not know are in no set of ours and so never agreed upon.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` are in.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Why streams are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To move a machine.
    Move,
    /// To fetch what a broken post-copy still owes.
    Fetch,
}

/// First frame of a control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version the source speaks.
    pub version_min: u16,
    /// Newest version the source speaks.
    pub version_max: u16,
    /// Which attempt.
    pub key: Key,
    /// Which machine.
    pub machine: MachineId,
    /// [`crate::RamLayout::digest`].
    pub layout: [u8; 32],
    /// Pages of RAM.
    pub pages: u64,
    /// What the source would use.
    pub offers: Offers,
    /// Page streams the source would open.
    pub streams: u8,
    /// Why.
    pub purpose: Purpose,
}

/// The target's answer to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The version to speak.
    pub version: u16,
    /// What the target agrees to.
    pub offers: Offers,
    /// Most page streams.
    pub streams: u8,
}

/// What is used from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// What is used.
    pub offers: Offers,
    /// Page streams, 1 to 16.
    pub streams: u8,
    /// The target may give up when nothing came for this long, milliseconds.
    pub idle_timeout_ms: u32,
}

/// First frame of a page stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHello {
    /// The version agreed upon.
    pub version: u16,
    /// Which attempt.
    pub key: Key,
    /// Which stream, from 0.
    pub stream: u8,
    /// As in the hello.
    pub purpose: Purpose,
}

/// All was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// Sections that were sent.
    pub sections: u32,
    /// Their digest.
    pub digest: [u8; 32],
    /// Pages that will come after the start.
    pub missing: u64,
}

/// Why a hello is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefuseReason {
    /// No version in common.
    Version,
    /// Another migration or token.
    Key,
    /// Another machine.
    Machine,
    /// RAM at other places.
    Layout,
    /// There is such a stream already.
    Duplicate,
    /// Not expected now.
    State,
}

/// A frame that carries no pages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table of the module says what each is")]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Refuse { reason: RefuseReason, text: String },
    Parameters(Parameters),
    StreamHello(StreamHello),
    StreamWelcome,
    RoundEnd(u32),
    RoundDone(u32),
    Section(Section),
    Missing(Vec<(u64, u64)>),
    Seal(Seal),
    Ready { key: Key, missing: u64 },
    Start(Key),
    Started(Key),
    Abort { key: Key, text: String },
    Wanted(Vec<u64>),
    Complete(Key),
}

fn key(cursor: &mut Cursor) -> Result<Key, WireError> {
    Ok(Key {
        migration: cursor.array()?,
        token: cursor.array()?,
    })
}

fn put_key(bytes: &mut Vec<u8>, key: &Key) {
    bytes.extend(key.migration);
    bytes.extend(key.token);
}

fn purpose(cursor: &mut Cursor) -> Result<Purpose, WireError> {
    match cursor.u8()? {
        0 => Ok(Purpose::Move),
        1 => Ok(Purpose::Fetch),
        _ => Err(cursor.malformed()),
    }
}

fn magic(cursor: &mut Cursor) -> Result<(), WireError> {
    if cursor.array()? == MAGIC {
        Ok(())
    } else {
        Err(cursor.malformed())
    }
}

fn reason(cursor: &mut Cursor) -> Result<RefuseReason, WireError> {
    Ok(match cursor.u8()? {
        0 => RefuseReason::Version,
        1 => RefuseReason::Key,
        2 => RefuseReason::Machine,
        3 => RefuseReason::Layout,
        4 => RefuseReason::Duplicate,
        5 => RefuseReason::State,
        _ => return Err(cursor.malformed()),
    })
}

fn hello(cursor: &mut Cursor) -> Result<Message, WireError> {
    magic(cursor)?;
    let hello = Hello {
        version_min: cursor.u16()?,
        version_max: cursor.u16()?,
        key: key(cursor)?,
        machine: MachineId(cursor.array()?),
        layout: cursor.array()?,
        pages: cursor.u64()?,
        offers: Offers(cursor.u32()?),
        streams: cursor.u8()?,
        purpose: purpose(cursor)?,
    };
    cursor.rest();
    Ok(Message::Hello(hello))
}

fn missing(cursor: &mut Cursor) -> Result<Message, WireError> {
    let mut pairs: Vec<(u64, u64)> = Vec::new();
    while !cursor.is_empty() {
        let pair = (cursor.u64()?, cursor.u64()?);
        if pair.1 == 0 || pairs.last().is_some_and(|last| last.0 >= pair.0) {
            return Err(cursor.malformed());
        }
        pairs.push(pair);
    }
    Ok(Message::Missing(pairs))
}

impl Message {
    /// Reads the payload of a frame of any kind but pages. What it has beyond its fields is an error, but in a hello.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let cursor = &mut Cursor::new(kind, payload);
        let message = match kind {
            1 => hello(cursor)?,
            2 => Self::Welcome(Welcome {
                version: cursor.u16()?,
                offers: Offers(cursor.u32()?),
                streams: cursor.u8()?,
            }),
            3 => Self::Refuse {
                reason: reason(cursor)?,
                text: cursor.text()?,
            },
            4 => Self::Parameters(Parameters {
                offers: Offers(cursor.u32()?),
                streams: cursor.u8()?,
                idle_timeout_ms: cursor.u32()?,
            }),
            5 => {
                magic(cursor)?;
                let (version, key) = (cursor.u16()?, key(cursor)?);
                Self::StreamHello(StreamHello {
                    version,
                    key,
                    stream: cursor.u8()?,
                    purpose: purpose(cursor)?,
                })
            }
            6 => Self::StreamWelcome,
            8 => Self::RoundEnd(cursor.u32()?),
            9 => Self::RoundDone(cursor.u32()?),
            10 => {
                let (version, name) = (cursor.u32()?, cursor.text()?);
                let section = Section {
                    name,
                    version,
                    bytes: cursor.rest().to_vec(),
                };
                if !section.is_valid() {
                    return Err(cursor.malformed());
                }
                Self::Section(section)
            }
            11 => missing(cursor)?,
            12 => Self::Seal(Seal {
                sections: cursor.u32()?,
                digest: cursor.array()?,
                missing: cursor.u64()?,
            }),
            13 => Self::Ready {
                key: key(cursor)?,
                missing: cursor.u64()?,
            },
            14 => Self::Start(key(cursor)?),
            15 => Self::Started(key(cursor)?),
            16 => Self::Abort {
                key: key(cursor)?,
                text: cursor.text()?,
            },
            17 => {
                let mut pages = Vec::new();
                while !cursor.is_empty() {
                    pages.push(cursor.u64()?);
                }
                Self::Wanted(pages)
            }
            18 => Self::Complete(key(cursor)?),
            _ => return Err(WireError::Kind(kind)),
        };
        cursor.end()?;
        Ok(message)
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; FRAME_HEADER_BYTES];
        let kind = self.put(&mut bytes);
        seal_frame(&mut bytes, kind);
        bytes
    }

    fn put(&self, bytes: &mut Vec<u8>) -> u8 {
        match self {
            Self::Hello(hello) => {
                bytes.extend(MAGIC);
                bytes.extend(hello.version_min.to_le_bytes());
                bytes.extend(hello.version_max.to_le_bytes());
                put_key(bytes, &hello.key);
                bytes.extend(hello.machine.0);
                bytes.extend(hello.layout);
                bytes.extend(hello.pages.to_le_bytes());
                bytes.extend(hello.offers.0.to_le_bytes());
                bytes.extend([hello.streams, hello.purpose as u8]);
                1
            }
            Self::Welcome(welcome) => {
                bytes.extend(welcome.version.to_le_bytes());
                bytes.extend(welcome.offers.0.to_le_bytes());
                bytes.push(welcome.streams);
                2
            }
            Self::Refuse { reason, text } => {
                bytes.push(*reason as u8);
                put_text(bytes, text);
                3
            }
            Self::Parameters(parameters) => {
                bytes.extend(parameters.offers.0.to_le_bytes());
                bytes.push(parameters.streams);
                bytes.extend(parameters.idle_timeout_ms.to_le_bytes());
                4
            }
            Self::StreamHello(hello) => {
                bytes.extend(MAGIC);
                bytes.extend(hello.version.to_le_bytes());
                put_key(bytes, &hello.key);
                bytes.extend([hello.stream, hello.purpose as u8]);
                5
            }
            Self::StreamWelcome => 6,
            Self::RoundEnd(round) => put_fields(bytes, 8, &round.to_le_bytes()),
            Self::RoundDone(round) => put_fields(bytes, 9, &round.to_le_bytes()),
            _ => self.put_state(bytes),
        }
    }

    /// The kinds that carry the state of the machine and its hand-over.
    fn put_state(&self, bytes: &mut Vec<u8>) -> u8 {
        match self {
            Self::Section(section) => {
                bytes.extend(section.version.to_le_bytes());
                put_text(bytes, &section.name);
                put_fields(bytes, 10, &section.bytes)
            }
            Self::Missing(pairs) => {
                bytes.extend(
                    pairs
                        .iter()
                        .flat_map(|(chunk, mask)| [chunk.to_le_bytes(), mask.to_le_bytes()])
                        .flatten(),
                );
                11
            }
            Self::Seal(seal) => {
                bytes.extend(seal.sections.to_le_bytes());
                bytes.extend(seal.digest);
                put_fields(bytes, 12, &seal.missing.to_le_bytes())
            }
            Self::Ready { key, missing } => {
                put_key(bytes, key);
                put_fields(bytes, 13, &missing.to_le_bytes())
            }
            Self::Start(key) => put_keyed(bytes, 14, key),
            Self::Started(key) => put_keyed(bytes, 15, key),
            Self::Abort { key, text } => {
                put_key(bytes, key);
                put_text(bytes, text);
                16
            }
            Self::Wanted(pages) => {
                bytes.extend(pages.iter().flat_map(|page| page.to_le_bytes()));
                17
            }
            Self::Complete(key) => put_keyed(bytes, 18, key),
            // The others are in `put`.
            _ => 0,
        }
    }

    /// What it is called in errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Welcome(_) => "welcome",
            Self::Refuse { .. } => "refuse",
            Self::Parameters(_) => "parameters",
            Self::StreamHello(_) => "stream hello",
            Self::StreamWelcome => "stream welcome",
            Self::RoundEnd(_) => "round end",
            Self::RoundDone(_) => "round done",
            Self::Section(_) => "section",
            Self::Missing(_) => "missing",
            Self::Seal(_) => "seal",
            Self::Ready { .. } => "ready",
            Self::Start(_) => "start",
            Self::Started(_) => "started",
            Self::Abort { .. } => "abort",
            Self::Wanted(_) => "wanted",
            Self::Complete(_) => "complete",
        }
    }
}

fn put_fields(bytes: &mut Vec<u8>, kind: u8, fields: &[u8]) -> u8 {
    bytes.extend(fields);
    kind
}

fn put_keyed(bytes: &mut Vec<u8>, kind: u8, key: &Key) -> u8 {
    put_key(bytes, key);
    kind
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{PageFrame, read_frame};

    const KEY: Key = Key {
        migration: [1; 16],
        token: [2; 16],
    };

    fn all() -> Vec<Message> {
        let hello = Hello {
            version_min: 1,
            version_max: 3,
            key: KEY,
            machine: MachineId([3; 16]),
            layout: [4; 32],
            pages: 99,
            offers: Offers::ZSTD.with(Offers::POST_COPY),
            streams: 4,
            purpose: Purpose::Fetch,
        };
        vec![
            Message::Hello(hello),
            Message::Welcome(Welcome {
                version: 1,
                offers: Offers::DELTA,
                streams: 16,
            }),
            Message::Refuse {
                reason: RefuseReason::State,
                text: "an ö".into(),
            },
            Message::Parameters(Parameters {
                offers: Offers::none(),
                streams: 1,
                idle_timeout_ms: 5,
            }),
            Message::StreamHello(StreamHello {
                version: 1,
                key: KEY,
                stream: 15,
                purpose: Purpose::Move,
            }),
            Message::StreamWelcome,
            Message::RoundEnd(7),
            Message::RoundDone(8),
            Message::Section(Section {
                name: "cpu/0".into(),
                version: 2,
                bytes: vec![9; 100],
            }),
            Message::Missing(vec![(0, 1), (5, u64::MAX)]),
            Message::Seal(Seal {
                sections: 1,
                digest: [5; 32],
                missing: 65,
            }),
            Message::Ready { key: KEY, missing: 65 },
            Message::Start(KEY),
            Message::Started(KEY),
            Message::Abort {
                key: KEY,
                text: String::new(),
            },
            Message::Wanted(vec![1, 64]),
            Message::Complete(KEY),
        ]
    }

    #[test]
    fn every_message_comes_back_and_every_bit_counts() {
        for message in all() {
            let frame = message.encode();
            let mut payload = Vec::new();
            let kind = read_frame(&mut &frame[..], &mut payload).unwrap();
            assert_eq!(Message::decode(kind, &payload).unwrap(), message);
            for bit in 0..frame.len() * 8 {
                let mut bad = frame.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    read_frame(&mut &bad[..], &mut payload).is_err(),
                    "bit {bit} of {}",
                    message.name()
                );
            }
            for cut in 0..frame.len() {
                assert!(read_frame(&mut &frame[..cut], &mut payload).is_err());
            }
        }
    }

    #[test]
    fn a_longer_hello_of_a_later_version_is_read() {
        let mut frame = all()[0].encode();
        frame.extend([1, 2, 3]);
        seal_frame(&mut frame, 1);
        let mut payload = Vec::new();
        let kind = read_frame(&mut &frame[..], &mut payload).unwrap();
        assert_eq!(Message::decode(kind, &payload).unwrap(), all()[0]);
    }

    #[test]
    fn a_length_alone_costs_no_memory() {
        let mut frame = Message::Section(Section {
            name: "x".into(),
            version: 0,
            bytes: Vec::new(),
        })
        .encode();
        frame[..4].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        let mut payload = Vec::new();
        assert!(read_frame(&mut &frame[..], &mut payload).is_err());
        assert!(payload.capacity() <= 1 << 20);
    }

    proptest! {
        #[test]
        fn any_payload_is_a_message_or_an_error(kind in 0_u8..20, payload in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = Message::decode(kind, &payload) {
                let again = message.encode();
                if kind != 1 {
                    prop_assert_eq!(&again[FRAME_HEADER_BYTES..], &payload[..]);
                }
            }
            if let Ok(pages) = PageFrame::decode(&payload) {
                let _ = pages.unpack_all();
            }
        }
    }
}
