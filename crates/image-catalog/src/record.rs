//! The fields of an image record that people write, and the rules they keep to.
//!
//! [`ImageWish`] is what somebody wrote, [`ImageRecord`] what passed; the latter is stored and checked again when it is read.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use spec::Name;

use crate::architecture::Architecture;
use crate::fault::{Faults, Note};
use crate::field_rules::{
    check_amazon, check_architecture, check_container_format, check_disk_format, check_minimum, check_name, check_tags,
    check_text, check_visibility,
};
use crate::format::{ContainerFormat, DiskFormat, Visibility};
use crate::property::{Properties, check_properties};
use crate::wish::{ImageEdit, ImageWish};

/// A record that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ImageWish", try_from = "ImageWish")]
pub struct ImageRecord {
    name: Name,
    description: String,
    disk_format: Option<DiskFormat>,
    container_format: Option<ContainerFormat>,
    architecture: Option<Architecture>,
    min_disk_gib: u32,
    min_ram_mib: u32,
    visibility: Visibility,
    protected: bool,
    hidden: bool,
    owner: Option<String>,
    tags: BTreeSet<String>,
    properties: Properties,
}

/// A record, and what its author should know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What passed.
    pub record: ImageRecord,
    /// Remarks, such as on keys that nothing is known of.
    pub notes: Vec<Note>,
}

impl ImageRecord {
    /// Checks what was written, and tells everything that is wrong.
    pub fn check(wish: &ImageWish) -> Result<Checked, Faults> {
        let (mut faults, mut notes) = (Faults::new(), Vec::new());
        let name = check_name(&wish.name, &mut faults);
        check_text("description", &wish.description, &mut faults);
        let disk_format = check_disk_format(wish, &mut faults);
        let container_format = check_container_format(wish, &mut faults);
        check_amazon(disk_format, container_format, &mut faults);
        let architecture = check_architecture(wish, &mut faults);
        let min_disk_gib = check_minimum("min_disk_gib", wish.min_disk_gib, &mut faults);
        let min_ram_mib = check_minimum("min_ram_mib", wish.min_ram_mib, &mut faults);
        let visibility = check_visibility(wish, &mut faults);
        if let Some(owner) = &wish.owner {
            check_text("owner", owner, &mut faults);
        }
        check_tags(&wish.tags, &mut faults);
        let properties = check_properties(&wish.properties, disk_format, &mut faults, &mut notes);
        let Some(name) = name else { return Err(faults) };
        let record = Self {
            name,
            description: wish.description.clone(),
            disk_format,
            container_format,
            architecture,
            min_disk_gib,
            min_ram_mib,
            visibility,
            protected: wish.protected,
            hidden: wish.hidden,
            owner: wish.owner.clone(),
            tags: wish.tags.clone(),
            properties,
        };
        faults.into_result(Checked { record, notes })
    }

    /// The record after `edit`, checked as a whole. Whether the image's state allows an edit is asked of
    /// [`crate::ImageState::may`].
    pub fn edited(&self, edit: &ImageEdit) -> Result<Checked, Faults> {
        let mut wish = ImageWish::from(self.clone());
        let set = |field: &mut String, value: &Option<String>| {
            if let Some(value) = value {
                field.clone_from(value);
            }
        };
        set(&mut wish.name, &edit.name);
        set(&mut wish.description, &edit.description);
        wish.disk_format = edit.disk_format.clone().or(wish.disk_format);
        wish.container_format = edit.container_format.clone().or(wish.container_format);
        wish.visibility = edit.visibility.clone().or(wish.visibility);
        wish.min_disk_gib = edit.min_disk_gib.unwrap_or(wish.min_disk_gib);
        wish.min_ram_mib = edit.min_ram_mib.unwrap_or(wish.min_ram_mib);
        wish.protected = edit.protected.unwrap_or(wish.protected);
        wish.hidden = edit.hidden.unwrap_or(wish.hidden);
        if let Some(tags) = &edit.tags {
            wish.tags.clone_from(tags);
        }
        for (key, value) in &edit.properties {
            match value {
                Some(value) => drop(wish.properties.insert(key.clone(), value.clone())),
                None => drop(wish.properties.remove(key)),
            }
        }
        edit_architecture(&mut wish, edit);
        Self::check(&wish)
    }

    /// Its name.
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// What its author says of it; empty if nothing.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What the disk is said to be.
    pub const fn disk_format(&self) -> Option<DiskFormat> {
        self.disk_format
    }

    /// What is said to be around the disk.
    pub const fn container_format(&self) -> Option<ContainerFormat> {
        self.container_format
    }

    /// Processor it is made for.
    pub const fn architecture(&self) -> Option<Architecture> {
        self.architecture
    }

    /// Smallest disk, GiB; 0 for none.
    pub const fn min_disk_gib(&self) -> u32 {
        self.min_disk_gib
    }

    /// Smallest memory, MiB; 0 for none.
    pub const fn min_ram_mib(&self) -> u32 {
        self.min_ram_mib
    }

    /// Who sees it.
    pub const fn visibility(&self) -> Visibility {
        self.visibility
    }

    /// Whether deletion is refused.
    pub const fn protected(&self) -> bool {
        self.protected
    }

    /// Whether ordinary lists leave it out.
    pub const fn hidden(&self) -> bool {
        self.hidden
    }

    /// Whose it is.
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// Words to find it by.
    pub const fn tags(&self) -> &BTreeSet<String> {
        &self.tags
    }

    /// Its properties. Where `architecture` is among them, the field of that name says the same.
    pub const fn properties(&self) -> &Properties {
        &self.properties
    }
}

/// A change of the architecture by either name replaces it under both.
fn edit_architecture(wish: &mut ImageWish, edit: &ImageEdit) {
    let property = edit.properties.get("architecture");
    if edit.architecture.is_some() {
        wish.architecture.clone_from(&edit.architecture);
        if property.is_none() {
            wish.properties.remove("architecture");
        }
    } else if let Some(property) = property {
        wish.architecture.clone_from(property);
    }
}

impl TryFrom<ImageWish> for ImageRecord {
    type Error = Faults;

    fn try_from(wish: ImageWish) -> Result<Self, Faults> {
        Self::check(&wish).map(|checked| checked.record)
    }
}

impl From<ImageRecord> for ImageWish {
    fn from(record: ImageRecord) -> Self {
        Self {
            name: record.name.into(),
            description: record.description,
            disk_format: record.disk_format.map(|format| format.as_str().to_owned()),
            container_format: record.container_format.map(|format| format.as_str().to_owned()),
            architecture: record.architecture.map(|arch| arch.as_str().to_owned()),
            min_disk_gib: record.min_disk_gib.into(),
            min_ram_mib: record.min_ram_mib.into(),
            visibility: Some(record.visibility.as_str().to_owned()),
            protected: record.protected,
            hidden: record.hidden,
            owner: record.owner,
            tags: record.tags,
            properties: record.properties.as_map().clone(),
        }
    }
}
