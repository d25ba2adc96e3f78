//! What a record demands of those who list it, make machines from it or delete it.

use std::fmt;

use crate::format::Viewer;
use crate::record::ImageRecord;

/// What a machine has too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Its root disk.
    Disk,
    /// Its memory.
    Memory,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        })
    }
}

/// A machine that is smaller than its image allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {resource} has {given_bytes} bytes and the image needs {needed_bytes}: make it larger")]
pub struct Shortfall {
    /// What there is too little of.
    pub resource: Resource,
    /// How much the image needs.
    pub needed_bytes: u64,
    /// How much the machine has.
    pub given_bytes: u64,
}

impl Shortfall {
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        match self.resource {
            Resource::Disk => "image_min_disk",
            Resource::Memory => "image_min_ram",
        }
    }
}

/// Deletion of an image that is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the image is protected: set protected to false first")]
pub struct Protected;

impl Protected {
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        "image_protected"
    }
}

impl ImageRecord {
    /// What a machine with a root disk and memory of these sizes has too little of; nothing if it is fine.
    pub fn shortfalls(&self, disk_bytes: u64, memory_bytes: u64) -> Vec<Shortfall> {
        let disk = (Resource::Disk, u64::from(self.min_disk_gib()) << 30, disk_bytes);
        let memory = (Resource::Memory, u64::from(self.min_ram_mib()) << 20, memory_bytes);
        let short = [disk, memory].into_iter().filter(|(_, needed, given)| given < needed);
        short
            .map(|(resource, needed_bytes, given_bytes)| Shortfall {
                resource,
                needed_bytes,
                given_bytes,
            })
            .collect()
    }

    /// Whether it is in `viewer`'s list: in the one of hidden images if it is hidden, else in the ordinary one.
    pub fn listed(&self, viewer: Viewer, hidden: bool) -> bool {
        self.hidden() == hidden && self.visibility().listed_for(viewer)
    }

    /// Whether it can be deleted, as far as the record alone tells; the flag binds administrators too.
    pub fn deletable(&self) -> Result<(), Protected> {
        if self.protected() { Err(Protected) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wish::ImageWish;

    fn record(json: &str) -> ImageRecord {
        let wish: ImageWish = serde_json::from_str(json).unwrap();
        ImageRecord::check(&wish).unwrap().record
    }

    #[test]
    fn a_machine_below_the_minimum_is_told_both_s17_1() {
        let image = record(r#"{"name": "a", "min_disk_gib": 8, "min_ram_mib": 512}"#);
        assert!(image.shortfalls(8 << 30, 512 << 20).is_empty());
        let short = image.shortfalls((8 << 30) - 1, (512 << 20) - 1);
        let codes: Vec<_> = short.iter().map(Shortfall::code).collect();
        assert_eq!(codes, ["image_min_disk", "image_min_ram"]);
        assert!(record(r#"{"name": "a"}"#).shortfalls(0, 0).is_empty());
        let huge = record(r#"{"name": "a", "min_disk_gib": 2147483647}"#);
        assert_eq!(huge.shortfalls(u64::MAX, 0), []);
        assert_eq!(huge.shortfalls(0, 0)[0].needed_bytes, 2_147_483_647 << 30);
    }

    #[test]
    fn hidden_images_have_a_list_of_their_own_s17_4() {
        let image = record(r#"{"name": "a", "hidden": true, "visibility": "public"}"#);
        assert!(!image.listed(Viewer::Other, false) && image.listed(Viewer::Other, true));
        assert!(image.visibility().usable_by(Viewer::Other));
        let private = record(r#"{"name": "a", "visibility": "private"}"#);
        assert!(private.listed(Viewer::Owner, false) && !private.listed(Viewer::Other, false));
    }

    #[test]
    fn protection_holds_until_it_is_taken_away_s17_3() {
        let image = record(r#"{"name": "a", "protected": true}"#);
        assert_eq!(image.deletable().unwrap_err().code(), "image_protected");
        let edit = serde_json::from_str(r#"{"protected": false}"#).unwrap();
        assert_eq!(image.edited(&edit).unwrap().record.deletable(), Ok(()));
    }
}
