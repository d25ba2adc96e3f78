//! Repairing an image: refcounts and bit 63 made true, the dirty and corrupt bits cleared.

use disk::{DiskError, DiskIo};
use serde::{Deserialize, Serialize};

use super::check::{CheckError, Limits, check_head, survey};
use super::file::File;
use super::report::CheckReport;
use super::settle::{self, Refit, SettleError, Terms, Unknown};
use super::tables::{self, TablesError};
use super::walk::WalkError;
use crate::meta::head::{Head, HeadError};
use crate::meta::header::incompatible;

/// What a repair may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// Gives lost clusters back, if nothing worse is wrong.
    Leaks,
    /// All that can be repaired without guessing about data: refcounts, bit 63.
    #[default]
    All,
}

/// Why an image could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The header is not accepted.
    #[error("the image can not be opened for a repair")]
    Head(#[from] HeadError),
    /// It can not be checked.
    #[error("the image can not be repaired")]
    Check(#[from] CheckError),
    /// Snapshots can not be told.
    #[error("the image can not be repaired")]
    Tables(#[from] TablesError),
    /// It can not be walked.
    #[error("the image can not be repaired")]
    Walk(#[from] WalkError),
    /// It can not be changed.
    #[error("the repair of the image could not be finished: it is as usable as it was")]
    Settle(#[from] SettleError),
    /// The file fails.
    #[error("the image's header can not be written")]
    Io(#[from] DiskError),
}

/// Repairs the image in a file. The report tells what is still wrong, and how much was repaired. Crash-safe.
///
/// Two passes over the metadata, of which one is a check afterwards. Bad table entries stay what they are: what they meant
/// is not known, and as long as there is one, no cluster is given back. With nothing wrong left, the dirty and corrupt bits are cleared.
///
/// # Errors
/// The image can not be read, the file fails or is read-only, the limits do not suffice, or the refcounts would have to be
/// built anew from tables that can not be read.
pub async fn repair(io: &dyn DiskIo, repair: Repair, limits: Limits) -> Result<CheckReport, RepairError> {
    run(io, repair, Unknown::RaiseOnly, limits).await
}

/// Repairs an image that was not closed cleanly, before it is changed: nobody has asked for it, so it is all or nothing.
///
/// # Errors
/// As for [`repair`]; and [`SettleError::Incomplete`] if tables can not be read: nothing was changed then.
pub(crate) async fn recover(io: &dyn DiskIo, limits: Limits) -> Result<CheckReport, RepairError> {
    run(io, Repair::All, Unknown::Refuse, limits).await
}

async fn run(io: &dyn DiskIo, repair: Repair, unknown: Unknown, limits: Limits) -> Result<CheckReport, RepairError> {
    let file = File(io);
    let mut head = Head::read(io).await?;
    let hanging = tables::read_tables(&file, &head).await?;
    let (before, sound) = {
        let (walk, _) = survey(&file, &head, &hanging, limits).await?;
        (walk.report, walk.refcounts_sound)
    };
    let mut after = before.clone();
    let wanted = match repair {
        Repair::All => before.corruptions > 0 || before.leaks > 0,
        Repair::Leaks => before.corruptions == 0 && before.leaks > 0,
    };
    if wanted {
        let refit = match sound {
            true => Refit::InPlace,
            false => Refit::Rebuild,
        };
        let terms = Terms { refit, unknown, limits };
        settle::settle(&file, &mut head, &hanging, terms).await?;
        after = check_head(&file, &head, limits).await?;
        after.corruptions_fixed = before.corruptions.saturating_sub(after.corruptions);
        after.leaks_fixed = before.leaks.saturating_sub(after.leaks);
    }
    let marks = incompatible::DIRTY | incompatible::CORRUPT;
    if after.corruptions == 0 && after.check_errors == 0 && head.header.incompatible & marks != 0 {
        head.header.incompatible &= !marks;
        settle::write_header(&file, &head).await?;
        after.dirty = false;
        after.corrupt = false;
    }
    Ok(after)
}
