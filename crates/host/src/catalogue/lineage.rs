//! What an image of a disk tells of where it is from, and what it takes over from the image that the disk was made from.

use image_catalog::{DiskFormat, ImageEdit, ImageRecord};
use spec::VmId;

use crate::failure::Failure;
use crate::registry::{Change, ImageRow};

/// Bytes in a GiB.
const GIB: u64 = 1 << 30;
/// Property that says what kind of image it is, as the image service's users know it.
const IMAGE_TYPE: &str = "image_type";
/// Property with the id of the image that the disk was made from.
const BASE_IMAGE: &str = "base_image_ref";
/// Property with the id of the machine that had the disk.
const INSTANCE: &str = "instance_uuid";
/// What signatures of other bytes are told by.
const SIGNATURE: &str = "img_signature";

/// Where a disk was from.
#[derive(Debug, Clone)]
pub(crate) struct Lineage {
    /// The machine that had it.
    pub(crate) vm: Option<VmId>,
    /// Digest of the image that it was made from.
    pub(crate) base: Option<String>,
    /// Size of the disk, bytes.
    pub(crate) size_bytes: u64,
    /// Properties by which this host has signed the image.
    pub(crate) signature: Vec<(&'static str, String)>,
}

impl Lineage {
    /// What tells it from other sources of images.
    pub(crate) fn origin(&self) -> String {
        self.vm
            .map_or_else(|| "snapshot".to_owned(), |vm| format!("snapshot:{vm}"))
    }
}

impl Change<'_> {
    /// The record with what its author did not write and the disk's own image has. What that is signed with stays behind: these are
    /// other bytes.
    pub(super) fn inherited(&self, row: &ImageRow, lineage: &Lineage) -> Result<ImageRecord, Failure> {
        let base = match &lineage.base {
            Some(digest) => self.images_of(digest)?.into_iter().find(|base| base.id != row.id),
            None => None,
        };
        let own = own_properties(row, lineage, base.as_ref());
        let mut edit = ImageEdit {
            properties: own,
            ..ImageEdit::default()
        };
        if row.record.min_disk_gib() == 0 {
            // Whole ones: no machine's disk is smaller than its image anyway.
            edit.min_disk_gib = Some(lineage.size_bytes / GIB);
        }
        if let Some(base) = &base {
            take_over(&mut edit, &row.record, &base.record);
        }
        match row.record.edited(&edit) {
            Ok(checked) => Ok(checked.record),
            Err(faults) => {
                tracing::warn!(
                    image = row.name(),
                    ?faults,
                    "an image does not take over what its disk's image has"
                );
                Ok(row.record.clone())
            }
        }
    }
}

fn own_properties(
    row: &ImageRow,
    lineage: &Lineage,
    base: Option<&ImageRow>,
) -> std::collections::BTreeMap<String, Option<String>> {
    let told = [
        (IMAGE_TYPE, Some("snapshot".to_owned())),
        (INSTANCE, lineage.vm.map(|vm| vm.to_string())),
        (BASE_IMAGE, base.map(|base| base.id.to_string())),
    ];
    let told = told.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let told = told.filter(|(key, _)| row.record.properties().get(key).is_none());
    let told = told.map(|(key, value)| (key.to_owned(), Some(value)));
    // These are all there or none, and what is there was verified.
    let signed = lineage
        .signature
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Some(value.clone())));
    let is_signed = row.record.properties().get(SIGNATURE).is_some();
    told.chain(signed.filter(|_| !is_signed)).collect()
}

fn take_over(edit: &mut ImageEdit, record: &ImageRecord, base: &ImageRecord) {
    // Of the three Amazon formats that alone is one of disks, and machines made from it are given a kernel by its properties.
    let amazon = (base.disk_format() == Some(DiskFormat::Ami)).then(|| "ami".to_owned());
    if record.disk_format().is_none() && record.container_format().is_none() {
        edit.disk_format.clone_from(&amazon);
        edit.container_format.clone_from(&amazon);
    }
    let has_line = edit.disk_format.is_some() || record.disk_format() == Some(DiskFormat::Ami);
    for (key, value) in base.properties().iter() {
        let is_of_bytes = key.starts_with(SIGNATURE) || (key == "os_command_line" && !has_line);
        if !is_of_bytes && record.properties().get(key).is_none() && !edit.properties.contains_key(key) {
            edit.properties.insert(key.to_owned(), Some(value.to_owned()));
        }
    }
    if record.architecture().is_none() {
        edit.architecture = base.architecture().map(|architecture| architecture.as_str().to_owned());
    }
    if record.min_ram_mib() == 0 {
        edit.min_ram_mib = Some(base.min_ram_mib().into());
    }
}
