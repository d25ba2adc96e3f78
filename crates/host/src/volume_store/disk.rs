//! Work on disk images.

use std::fs::File;
use std::path::Path;

use api_types::{ErrorCode, Preallocation, VolumeRepair};
use spec::DiskFormat;

use super::meter::Meter;
use crate::failure::Failure;

/// What form a volume has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) format: DiskFormat,
    pub(super) size_bytes: u64,
    pub(super) preallocation: Preallocation,
    pub(super) cluster_bytes: Option<u64>,
    pub(super) compressed: bool,
}

impl Form {
    /// Whether nothing of it needs the data to be written in a certain way.
    pub(super) fn is_plain(&self) -> bool {
        self.preallocation.is_off() && self.cluster_bytes.is_none() && !self.compressed
    }

    /// Fails where its parts do not fit each other, which is known late where the format comes from an upload.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let needs_qcow2 =
            self.cluster_bytes.is_some() || self.compressed || self.preallocation == Preallocation::Metadata;
        if self.format == DiskFormat::Raw && needs_qcow2 {
            let text = "what was uploaded is raw, which has no clusters, metadata or compression; ask for format qcow2";
            return Err(Failure::refused_field(
                "the upload does not fit the volume",
                "format",
                text,
            ));
        }
        Ok(())
    }
}

/// A file of a disk.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) format: DiskFormat,
}

impl Source {
    pub(super) const fn raw(file: File) -> Self {
        let format = DiskFormat::Raw;
        Self { file, format }
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) errors: u64,
    pub(super) leaks: u64,
    pub(super) errors_repaired: u64,
    pub(super) leaks_repaired: u64,
    pub(super) details: Vec<String>,
}

fn later() -> Failure {
    Failure::new(ErrorCode::Internal, "not yet")
}

pub(super) fn blank(_file: &File, _form: &Form, _backing: Option<&Path>, _meter: &Meter) -> Result<(), Failure> {
    Err(later())
}

pub(super) fn copy(_source: Vec<Source>, _target: &File, _form: &Form, _meter: &Meter) -> Result<(), Failure> {
    Err(later())
}

pub(super) fn judge(_file: &File) -> Result<(DiskFormat, u64), Failure> {
    Err(later())
}

pub(super) fn size(_file: &File, _format: DiskFormat) -> Result<u64, Failure> {
    Err(later())
}

pub(super) fn grow(_file: &File, _format: DiskFormat, _size_bytes: u64) -> Result<(), Failure> {
    Err(later())
}

pub(super) fn check(
    _file: &File,
    _format: DiskFormat,
    _repair: Option<VolumeRepair>,
    _meter: &Meter,
) -> Result<Found, Failure> {
    Err(later())
}
