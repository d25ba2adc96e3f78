//! Putting an image on top of another one.

use std::sync::Mutex;

use disk::{Access, DiskError};
use disk_qcow2::ops::{self, AmendError, BackingName};
use disk_raw::Role;
use spec::DiskFormat;

use crate::chain::Chain;
use crate::copy::{self, ByChange, CopyError, Guide, Job, Regions, Rules, queue};
use crate::engine::{self, EngineError};
use crate::open::{self, CloseError, Image, OpenError, OpenOptions};
use crate::padded::Padded;
use crate::watch::Watch;

/// Why an image has not changed places. It shows what it showed.
#[derive(Debug, thiserror::Error)]
pub enum RebaseError {
    /// A raw image.
    #[error("image {name} is raw, and can not have a backing image")]
    Raw {
        /// Its name.
        name: String,
    },
    /// An image of a chain.
    #[error("the images can not be opened")]
    Open(#[from] OpenError),
    /// In between.
    #[error("what differs could not be copied: the image has its old backing image, and works")]
    Copy(#[from] CopyError),
    /// Between copying and the new name.
    #[error("what was copied could not be made durable: the image has its old backing image")]
    Close(#[from] CloseError),
    /// The file.
    #[error("the image can not be read")]
    Read(#[from] DiskError),
    /// The new name.
    #[error("the new backing image can not be recorded: the image has its old one, and works")]
    Amend(#[from] AmendError),
    /// No executor.
    #[error("the images can not be worked on")]
    Engine(#[from] EngineError),
}

/// Puts the top image of `chain`, which is open for writing, on top of `new`, or of nothing, so that it shows what it showed: what
/// differs between the old and the new disk below is copied into it first. `name` is how the image is to refer to `new`. With
/// nothing below it becomes an image that stands by itself. Blocks.
///
/// # Errors
/// An image is in use or fails, or it was stopped.
pub fn rebase(chain: &Chain, new: Option<(&Chain, &BackingName)>, watch: &dyn Watch) -> Result<(), RebaseError> {
    let top = chain.top();
    if top.format == DiskFormat::Raw {
        return Err(RebaseError::Raw { name: top.name.clone() });
    }
    let reads = OpenOptions::default();
    let writes = OpenOptions {
        access: Access::ReadWrite,
        ..reads
    };
    let old = open::tail(chain)?.map(|old| open::open(&old, &reads)).transpose()?;
    let below = new.map(|(new, _)| open::open(new, &reads)).transpose()?;
    let disk_of = |image: &Option<Image>| image.as_ref().map(Image::disk);
    let (old, below) = (disk_of(&old), disk_of(&below));
    // An engine that finds zeroes below need not say that there are zeroes: below, there is to be something everywhere.
    let longest = below.as_ref().map_or(0, |disk| disk.geometry().size_bytes);
    let image = engine::block_on(open::overlay(top, Some(Padded::of(old.clone(), longest)), &writes))??;
    let disk = image.disk();
    let guide = || -> Result<Box<dyn Guide>, DiskError> {
        Ok(Box::new(ByChange {
            map: image.layer_map()?,
            old: queue(old.as_deref())?,
            new: queue(below.as_deref())?,
        }))
    };
    copy::run(Job {
        source: &*disk,
        target: &*disk,
        reference: below.as_deref(),
        guide: &guide,
        packed: None,
        rules: Rules {
            sparse_bytes: 0,
            target_is_zero: false,
            threads: None,
            in_order: false,
        },
        regions: Regions::of(disk.geometry().size_bytes),
        watch,
        failure: Mutex::new(None),
    })?;
    image.close_now()?;
    record(chain, new.map(|(_, name)| name))
}

/// Has the top image of `chain` refer to another image, or to none, without looking at either: for when that was moved or renamed. If
/// it shows something else, so does the image.
///
/// # Errors
/// The image is in use or fails.
pub fn rebase_unchecked(chain: &Chain, name: Option<&BackingName>) -> Result<(), RebaseError> {
    match chain.top().format {
        DiskFormat::Raw => Err(RebaseError::Raw {
            name: chain.top().name.clone(),
        }),
        DiskFormat::Qcow2 => record(chain, name),
    }
}

fn record(chain: &Chain, name: Option<&BackingName>) -> Result<(), RebaseError> {
    let top = chain.top();
    let options = OpenOptions {
        access: Access::ReadWrite,
        ..OpenOptions::default()
    };
    let container = open::file(&top.file, &top.name, &options, Role::Container)?;
    engine::block_on(async {
        let io = container.open_queue()?;
        Ok(ops::set_backing(&*io, name).await?)
    })?
}
