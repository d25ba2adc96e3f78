//! Layers that can be entered in their middle, and what is kept of an import that was there.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::ImageDigest;
use crate::gunzip::{Gunzip, Junction};
use crate::inflow::{Inflow, Place};
use crate::layer::Compression;
use crate::parts::Role;
use crate::taking::Halfway;
use crate::unzstd::Unzstd;

/// Where a layer can be entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entrance {
    /// Uncompressed: anywhere.
    Plain(Place),
    /// Between two blocks.
    Gzip(Junction),
    /// Between two frames.
    Zstd(Place),
}

impl Entrance {
    /// Bytes of the blob before it.
    pub(crate) const fn offset(&self) -> u64 {
        match self {
            Self::Plain(place) | Self::Zstd(place) => place.offset,
            Self::Gzip(junction) => junction.place.offset,
        }
    }
}

/// What a layer unpacks to.
pub(crate) enum Stream<'a> {
    /// Of a layer that is here: need not be entered.
    Closed(Box<dyn Read + 'a>),
    Plain(Inflow<Box<dyn Read + 'a>>),
    Gzip(Box<Gunzip<Box<dyn Read + 'a>>>),
    Zstd(Box<Unzstd<Inflow<Box<dyn Read + 'a>>>>),
}

impl<'a> Stream<'a> {
    /// From the beginning; none without memory.
    pub(crate) fn begin(input: Box<dyn Read + 'a>, length: u64, compression: Compression) -> Option<Self> {
        let inflow = Inflow::new(input, length);
        match compression {
            Compression::None => Some(Self::Plain(inflow)),
            Compression::Gzip => Some(Self::Gzip(Box::new(Gunzip::new(inflow)))),
            Compression::Zstd => Some(Self::Zstd(Box::new(Unzstd::new(inflow).ok()?))),
        }
    }

    /// From `entrance` on, behind which `input` begins; none if that is no entrance.
    pub(crate) fn enter(input: Box<dyn Read + 'a>, length: u64, entrance: &Entrance) -> Option<Self> {
        match entrance {
            Entrance::Plain(place) => Inflow::resume(input, length, place).map(Self::Plain),
            Entrance::Gzip(junction) => {
                let inflow = Inflow::resume(input, length, &junction.place)?;
                Some(Self::Gzip(Box::new(Gunzip::resume(inflow, junction)?)))
            }
            Entrance::Zstd(place) => {
                let inflow = Inflow::resume(input, length, place)?;
                Some(Self::Zstd(Box::new(Unzstd::resume(inflow).ok()?)))
            }
        }
    }

    /// Bytes of the blob used.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Self::Closed(_) => 0,
            Self::Plain(inflow) => inflow.offset(),
            Self::Gzip(gunzip) => gunzip.offset(),
            Self::Zstd(unzstd) => unzstd.offset(),
        }
    }

    /// Where it can be entered behind what was read, if that is a place where it can.
    pub(crate) fn entrance(&self) -> Option<Entrance> {
        match self {
            Self::Closed(_) => None,
            Self::Plain(inflow) => Some(Entrance::Plain(inflow.place())),
            Self::Gzip(gunzip) => gunzip.junction().map(Entrance::Gzip),
            Self::Zstd(unzstd) => unzstd.place().map(Entrance::Zstd),
        }
    }

    /// Reads the blob to its end; returns its digest, unless it cannot be entered.
    pub(crate) fn finish(self) -> io::Result<Option<ImageDigest>> {
        match self {
            Self::Closed(_) => Ok(None),
            Self::Plain(inflow) => inflow.finish().map(Some),
            Self::Gzip(gunzip) => gunzip.into_inner().finish().map(Some),
            Self::Zstd(unzstd) => unzstd.into_inner().finish().map(Some),
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Closed(stream) => stream.read(buffer),
            Self::Plain(inflow) => inflow.read(buffer),
            Self::Gzip(gunzip) => gunzip.read(buffer),
            Self::Zstd(unzstd) => unzstd.read(buffer),
        }
    }
}

/// All that is needed to go on with layers another time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeptLayers {
    /// The layers before this one are done.
    pub(crate) layer: usize,
    pub(crate) unpacked_left: u64,
    pub(crate) files_made: u64,
    pub(crate) links: u64,
    /// Whole files.
    pub(crate) found: Vec<KeptFile>,
    /// The file that was being taken out of the layer.
    pub(crate) midway: Option<Midway>,
}

/// A file that is there, or its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeptFile {
    pub(crate) role: Role,
    pub(crate) layer: usize,
    /// Path in the image.
    pub(crate) path: String,
    /// Its number among the files made.
    pub(crate) number: u64,
    pub(crate) halfway: Halfway,
}

/// Where an import was in the middle of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Midway {
    pub(crate) entrance: Entrance,
    /// Bytes of the archive's entry that are to come, and of the filler behind them.
    pub(crate) left: (u64, u64),
    /// Length of the entry, bytes.
    pub(crate) size: u64,
    pub(crate) file: KeptFile,
}

/// Notes from time to time what is needed to go on.
pub(crate) struct Noting<'a> {
    /// How often, bytes of the blob.
    pub(crate) every: u64,
    /// Bytes of the blob before the last note.
    pub(crate) noted: u64,
    pub(crate) note: &'a mut dyn FnMut(KeptLayers) -> io::Result<()>,
}
