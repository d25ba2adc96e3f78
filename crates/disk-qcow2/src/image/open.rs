//! Opening an image: what is looked at, what is refused.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use disk::{Access, Disk, DiskError, DiskIo, Geometry};

use super::cache::{Cache, OffsetMap};
use super::inflate::{Crowd, Inflated};
use super::options::{OpenError, Qcow2Options};
use super::queue::Queue;
use super::state::{Engine, Image};
use super::tables::{Fixed, Table, Tables};
use crate::meta::head::Head;
use crate::meta::header::{autoclear, compatible, incompatible};
use crate::meta::layout::Layout;
use crate::ops::{self, CheckReport, File, Limits, TablesError};

/// An image in use.
pub struct Qcow2Disk {
    image: Arc<Image>,
    file: Arc<dyn Disk>,
    backing: Option<Arc<dyn Disk>>,
    data: Option<Arc<dyn Disk>>,
}

impl Qcow2Disk {
    /// Opens the image in `file`. Reads its header and snapshot table, and no more, whatever its size.
    ///
    /// Called on a thread where the file's queues work. The refcounts of an image that was not closed cleanly (dirty bit) are
    /// rebuilt before it is written, which takes a look at all of its tables.
    ///
    /// # Errors
    /// It is no image, a damaged one, one with features that are not supported, or not usable in this way.
    pub async fn open(file: Arc<dyn Disk>, options: Qcow2Options) -> Result<Arc<Self>, OpenError> {
        let name = || options.name.clone();
        let below = |source| OpenError::Below { name: name(), source };
        for disk in [Some(&file), options.backing.as_ref(), options.data_file.as_ref()]
            .into_iter()
            .flatten()
        {
            if disk.geometry().logical_sector_bytes != 512 {
                return Err(OpenError::Sectors { name: name() });
            }
        }
        let io = file.open_queue().map_err(below)?;
        let head = |source| OpenError::Head { name: name(), source };
        let mut opened = Head::read(&*io).await.map_err(head)?;
        check(&opened, &options, &*file)?;
        if options.access == Access::ReadWrite && opened.header.incompatible & incompatible::DIRTY != 0 {
            clean(&*io, &options.name).await?;
            opened = Head::read(&*io).await.map_err(head)?;
        }
        let fixed = fixed(&opened, &File(&*io)).await;
        let fixed = fixed.map_err(|source| OpenError::Tables { name: name(), source })?;
        let image = Arc::new(image(&opened, fixed, &options, file.geometry()));
        tracing::debug!(name = options.name, layout = ?image.layout, size = image.size_bytes(), "qcow2 image opened");
        Ok(Arc::new(Self {
            image,
            file,
            backing: options.backing,
            data: options.data_file,
        }))
    }

    /// Commits all that changed and marks the image as clean. Called when no operation is in flight; the image stays usable.
    /// Without it nothing is lost that was flushed.
    ///
    /// # Errors
    /// The file failed, now or in an earlier flush.
    pub async fn close(&self) -> Result<(), DiskError> {
        let engine = self.engine()?;
        engine
            .close()
            .await
            .map_err(|fault| fault.of(disk::DiskOp::Flush, 0, 0))
    }

    pub(crate) fn engine(&self) -> Result<Rc<Engine>, DiskError> {
        let queue = |disk: &Option<Arc<dyn Disk>>| disk.as_ref().map(|disk| disk.open_queue()).transpose();
        Ok(Rc::new(Engine {
            image: Arc::clone(&self.image),
            file: self.file.open_queue()?,
            backing: queue(&self.backing)?,
            data: queue(&self.data)?,
            inflating: Crowd::default(),
        }))
    }
}

impl Disk for Qcow2Disk {
    fn name(&self) -> &str {
        &self.image.name
    }

    fn geometry(&self) -> Geometry {
        self.image.geometry(self.file.geometry().physical_sector_bytes)
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(Queue(self.engine()?)))
    }
}

/// What is refused although the header is sound.
fn check(head: &Head, options: &Qcow2Options, file: &dyn Disk) -> Result<(), OpenError> {
    let name = || options.name.clone();
    let header = &head.header;
    if options.access == Access::ReadWrite {
        if file.geometry().access == Access::ReadOnly {
            return Err(OpenError::ReadOnly { name: name() });
        }
        if header.incompatible & incompatible::CORRUPT != 0 {
            return Err(OpenError::Corrupt { name: name() });
        }
    }
    if let (Some(backing), None) = (&head.backing_file, &options.backing) {
        let backing = backing.clone();
        return Err(OpenError::NoBacking { name: name(), backing });
    }
    let wanted = header.incompatible & incompatible::DATA_FILE != 0;
    if wanted != options.data_file.is_some() {
        return Err(OpenError::DataFile { name: name(), wanted });
    }
    let size = file.geometry().size_bytes;
    let tables = [
        ("L1 table", header.l1_offset, u64::from(header.l1_entries) * 8),
        ("refcount table", header.reftable_offset, 8),
    ];
    for (table, offset, len) in tables {
        if len > 0 && offset.saturating_add(len) > size.next_multiple_of(header.layout().cluster_bytes()) {
            return Err(OpenError::Outside { name: name(), table });
        }
    }
    Ok(())
}

/// Rebuilds the refcounts of an image that was not closed cleanly.
async fn clean(io: &dyn DiskIo, name: &str) -> Result<(), OpenError> {
    let repaired = ops::recover(io, Limits::default()).await;
    let report: CheckReport = repaired.map_err(|source| OpenError::Repair {
        name: name.to_owned(),
        source,
    })?;
    tracing::info!(
        image = name,
        ?report,
        "refcounts rebuilt: the image was not closed cleanly"
    );
    match report.corruptions {
        0 => Ok(()),
        _ => Err(OpenError::Corrupt { name: name.to_owned() }),
    }
}

/// The clusters of all that is neither guest data nor a table that the cache would know.
async fn fixed(head: &Head, file: &File<'_>) -> Result<Fixed, TablesError> {
    let header = &head.header;
    let layout = header.layout();
    let clusters = |offset: u64, bytes: u64| {
        let first = offset >> layout.cluster_bits;
        first..first.saturating_add(layout.clusters(layout.in_cluster(offset).saturating_add(bytes)))
    };
    let mut ranges = vec![
        0..1,
        clusters(header.l1_offset, u64::from(header.l1_entries) * 8),
        clusters(
            header.reftable_offset,
            u64::from(header.reftable_clusters) << layout.cluster_bits,
        ),
    ];
    if header.snapshot_count > 0 {
        let tables = ops::read_tables(file, head).await?;
        ranges.push(clusters(header.snapshots_offset, tables.snapshots_bytes));
        for snapshot in &tables.snapshots {
            ranges.push(clusters(snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8));
        }
    }
    if let Some(pointer) = ops::bitmaps(head)? {
        ranges.push(clusters(pointer.directory_offset, pointer.directory_bytes));
    }
    Ok(Fixed::new(ranges))
}

fn image(head: &Head, fixed: Fixed, options: &Qcow2Options, file: Geometry) -> Image {
    let header = head.header.clone();
    let layout: Layout = header.layout();
    let tables = Tables {
        layout,
        cache: Cache::new(layout.slice_bytes(), layout.cluster_bits, options.cache_bytes),
        epochs: super::epoch::Epochs::default(),
        busy: super::busy::Busy::default(),
        loading: OffsetMap::default(),
        l1: Table {
            offset: header.l1_offset,
            entries: u64::from(header.l1_entries),
        },
        reftable: Table {
            offset: header.reftable_offset,
            entries: u64::from(header.reftable_clusters) << layout.cluster_bits >> 3,
        },
        fixed,
        free_hint: 0,
        fresh_from: layout.clusters(file.size_bytes),
        unreferenced: Vec::new(),
        retired: VecDeque::new(),
        committing: false,
    };
    Image {
        name: options.name.clone(),
        layout,
        access: options.access,
        compression: header.compression,
        size_bytes: AtomicU64::new(header.size_bytes.next_multiple_of(512)),
        backing_bytes: options.backing.as_ref().map_or(0, |disk| disk.geometry().size_bytes),
        has_backing: options.backing.is_some(),
        lazy: options.access == Access::ReadWrite && header.compatible & compatible::LAZY_REFCOUNTS != 0,
        data_is_raw: header.autoclear & autoclear::RAW_DATA_FILE != 0,
        bitmaps: ops::bitmaps(head).ok().flatten(),
        tables: Mutex::new(tables),
        resizing: async_lock::Mutex::new(()),
        structure: async_lock::Mutex::new(()),
        commits: async_lock::Mutex::new(0),
        growing: async_lock::Mutex::new(()),
        cuts: AtomicU64::new(0),
        poisoned: AtomicBool::new(false),
        prepared: AtomicBool::new(false),
        filling: async_lock::Mutex::new(None),
        inflated: Mutex::new(Inflated::default()),
        header: async_lock::Mutex::new(header),
    }
}
