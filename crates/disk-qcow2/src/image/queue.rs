//! The disk contract on an image: each operation checked, counted in its epoch, and run to its end whatever becomes of its
//! future.

use std::future::Future;
use std::rc::Rc;

use disk::{
    Access, Discard, DiskError, DiskFuture, DiskIo, DiskOp, Extent, Geometry, Transferred, ZeroMode, total_len,
};
use guestmem::IoBuf;
use uring::kept;

use super::fault::Fault;
use super::state::{Engine, Image};

impl Image {
    /// Size and abilities now. `physical` is what the file says of itself.
    pub(crate) fn geometry(&self, physical_sector_bytes: u32) -> Geometry {
        let granularity = u32::try_from(self.layout.unit_bytes()).unwrap_or(512);
        Geometry {
            size_bytes: self.size_bytes(),
            logical_sector_bytes: 512,
            physical_sector_bytes,
            access: self.access,
            discard: match self.access {
                Access::ReadOnly => Discard::Unsupported,
                Access::ReadWrite => Discard::Supported {
                    granularity_bytes: granularity.max(512),
                },
            },
        }
    }
}

/// A queue of an image.
pub(crate) struct Queue(pub(crate) Rc<Engine>);

impl Queue {
    /// A change: checked, prepared for, counted in its epoch.
    fn change<F>(
        &self,
        op: DiskOp,
        (offset, len): (u64, u64),
        act: impl FnOnce(Rc<Engine>) -> F + 'static,
    ) -> DiskFuture<'static, Result<(), DiskError>>
    where
        F: Future<Output = Result<(), Fault>>,
    {
        let engine = Rc::clone(&self.0);
        let checked = self.geometry().check(op, offset, len);
        kept(async move {
            checked?;
            if len == 0 {
                return Ok(());
            }
            let told = |fault: Fault| fault.of(op, offset, len);
            engine.prepare().await.map_err(told)?;
            let stay = engine.image.tables().epochs.enter();
            let result = act(engine).await;
            stay.end();
            result.map_err(told)
        })
    }
}

impl DiskIo for Queue {
    fn geometry(&self) -> Geometry {
        self.0.image.geometry(self.0.file.geometry().physical_sector_bytes)
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let engine = Rc::clone(&self.0);
        kept(async move {
            let len = total_len(&bufs);
            match engine.image.geometry(512).check(DiskOp::Read, offset, len) {
                Ok(()) if len > 0 => {}
                checked => return (checked, bufs),
            }
            let (stay, mapped) = engine.begin(|tables| tables.run(offset, len)).await;
            let (result, bufs) = engine.read_mapped(offset, bufs, mapped).await;
            stay.end();
            (result.map_err(|fault| fault.of(DiskOp::Read, offset, len)), bufs)
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let engine = Rc::clone(&self.0);
        kept(async move {
            let len = total_len(&bufs);
            match engine.image.geometry(512).check(DiskOp::Write, offset, len) {
                Ok(()) if len > 0 => {}
                checked => return (checked, bufs),
            }
            let told = |fault: Fault| fault.of(DiskOp::Write, offset, len);
            if let Err(fault) = engine.prepare().await {
                return (Err(told(fault)), bufs);
            }
            let (stay, placed) = engine.begin(|tables| tables.place(offset, len)).await;
            let (result, bufs) = engine.write_placed(offset, bufs, placed).await;
            stay.end();
            (result.map_err(told), bufs)
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        let engine = Rc::clone(&self.0);
        kept(async move {
            match engine.image.access {
                Access::ReadOnly => Ok(()),
                Access::ReadWrite => engine.flush().await.map_err(|fault| fault.of(DiskOp::Flush, 0, 0)),
            }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.change(DiskOp::Discard, (offset, len), move |engine| async move {
            engine.discard(offset, len).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        self.change(DiskOp::WriteZeroes, (offset, len), move |engine| async move {
            engine.zero(offset, len, mode).await
        })
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let engine = Rc::clone(&self.0);
        let grows = self.geometry().check_grow(size_bytes);
        kept(async move {
            if !grows? {
                return Ok(());
            }
            let stay = engine.image.tables().epochs.enter();
            let result = engine.grow(size_bytes).await;
            stay.end();
            result.map_err(|fault| fault.of(DiskOp::Grow, 0, size_bytes))
        })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        let engine = Rc::clone(&self.0);
        let checked = self.geometry().check(DiskOp::Extents, offset, len);
        kept(async move {
            checked?;
            let stay = engine.image.tables().epochs.enter();
            let result = engine.extents(offset, len).await;
            stay.end();
            result.map_err(|fault| fault.of(DiskOp::Extents, offset, len))
        })
    }
}
