//! Which imports go.

use crate::definition::{BootSource, GarbageCollect, Retention};
use crate::state::{Import, SourceState};

impl SourceState {
    /// Imports that are to be removed now, oldest first. `in_use` tells of an image whether anything but this source needs it:
    /// a machine, a volume, an import under way, a protected record, another source. After each removal call
    /// [`SourceState::forget`]. Ask after each import, when an image's last use ends, and when the daemon starts.
    ///
    /// The newest import is never among them, nor is one in use. Those in use count towards `imports_to_keep`, so that the
    /// fourth import of three removes the oldest that nothing uses. What is in another store by now goes in any case.
    pub fn removals(&self, source: &BootSource, in_use: impl Fn(&str) -> bool) -> Vec<Import> {
        if source.garbage_collect == GarbageCollect::Never {
            return Vec::new();
        }
        let keep = usize::try_from(source.imports_to_keep.max(1)).unwrap_or(usize::MAX);
        let surplus = self.imports.len().saturating_sub(keep);
        let unused = self.imports.iter().enumerate().skip(1).rev();
        let unused: Vec<_> = unused.filter(|(_, import)| !in_use(&import.image)).collect();
        let has_moved = |at: usize, import: &Import| {
            let mut newer = self.imports.iter().take(at);
            newer.any(|newer| import.is_moved_to(newer))
        };
        let moved = unused.iter().filter(|(at, import)| has_moved(*at, import)).count();
        let mut left = surplus.saturating_sub(moved);
        let mut going = Vec::new();
        for (at, import) in unused {
            let is_surplus = !has_moved(at, import) && left > 0;
            left -= usize::from(is_surplus);
            if is_surplus || has_moved(at, import) {
                going.push(import.clone());
            }
        }
        going
    }

    /// Imports that are to be removed since the source itself was deleted; those in use stay, as images of nobody's.
    pub fn removals_on_deletion(&self, source: &BootSource, in_use: impl Fn(&str) -> bool) -> Vec<Import> {
        match source.retention {
            Retention::RetainAll => Vec::new(),
            Retention::None => {
                let unused = self.imports.iter().rev().filter(|import| !in_use(&import.image));
                unused.cloned().collect()
            }
        }
    }
}
