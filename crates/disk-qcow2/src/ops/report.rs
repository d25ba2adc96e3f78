//! What a check found, in `qemu-img check`'s terms.

use serde::{Deserialize, Serialize};

/// Most problems that are told one by one.
const TOLD: usize = 100;

/// Outcome of a check or repair. Numbers and names are those of `qemu-img check --output=json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// Parts of the image that could not be checked.
    pub check_errors: u64,
    /// Things that are wrong and may destroy data when the image is written, or have.
    pub corruptions: u64,
    /// Clusters that are counted more often than referenced: lost space, nothing else.
    pub leaks: u64,
    /// Corruptions that a repair has removed.
    pub corruptions_fixed: u64,
    /// Leaks that a repair has removed.
    pub leaks_fixed: u64,
    /// Guest clusters that have a cluster of their own.
    pub allocated_clusters: u64,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
    /// Guest clusters that are compressed.
    pub compressed_clusters: u64,
    /// Allocated guest clusters that do not follow their predecessor in the file.
    pub fragmented_clusters: u64,
    /// First byte behind everything that is counted or referenced.
    pub image_end_offset: u64,
    /// The dirty bit is set: refcounts may be wrong and are rebuilt at the next opening.
    pub dirty: bool,
    /// The corrupt bit is set: the image can be opened for reading only.
    pub corrupt: bool,
    /// The first problems, for people.
    pub problems: Vec<String>,
    /// How many more there are.
    pub more_problems: u64,
}

impl CheckReport {
    /// Nothing wrong, not even lost space.
    pub const fn is_clean(&self) -> bool {
        self.check_errors == 0 && self.corruptions == 0 && self.leaks == 0
    }

    fn tell(&mut self, problem: impl FnOnce() -> String) {
        match self.problems.len() < TOLD {
            true => self.problems.push(problem()),
            false => self.more_problems += 1,
        }
    }

    pub(crate) fn corruption(&mut self, problem: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.tell(problem);
    }

    pub(crate) fn leak(&mut self, problem: impl FnOnce() -> String) {
        self.leaks += 1;
        self.tell(problem);
    }
}
