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

/// What a file below said, as the failure of an operation on the image.
#[cold]
fn told(error: DiskError, op: DiskOp, offset: u64, len: u64) -> DiskError {
    Fault::from(error).of(op, offset, len)
}

impl Engine {
    /// A read that is more than one transfer, or nothing, or refused.
    async fn read_in_steps(&self, offset: u64, bufs: Vec<IoBuf>) -> Transferred {
        let len = total_len(&bufs);
        match self.image.geometry(512).check(DiskOp::Read, offset, len) {
            Ok(()) if len > 0 => {}
            checked => return (checked, bufs),
        }
        let stay = self.image.tables().epochs.enter();
        let (result, bufs) = self.read(offset, bufs).await;
        stay.end();
        (result.map_err(|fault| fault.of(DiskOp::Read, offset, len)), bufs)
    }

    /// A write that is more than one transfer, or nothing, or refused.
    async fn write_in_steps(&self, offset: u64, bufs: Vec<IoBuf>) -> Transferred {
        let len = total_len(&bufs);
        match self.image.geometry(512).check(DiskOp::Write, offset, len) {
            Ok(()) if len > 0 => {}
            checked => return (checked, bufs),
        }
        let told = |fault: Fault| fault.of(DiskOp::Write, offset, len);
        if let Err(fault) = self.prepare().await {
            return (Err(told(fault)), bufs);
        }
        let stay = self.image.tables().epochs.enter();
        let (result, bufs) = self.write(offset, bufs).await;
        stay.end();
        (result.map_err(told), bufs)
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
            match engine.straight_read(offset, len) {
                Some((stay, run)) => {
                    let (result, bufs) = engine.read_run(offset, run, bufs).await;
                    stay.end();
                    (result.map_err(|error| told(error, DiskOp::Read, offset, len)), bufs)
                }
                None => Box::pin(engine.read_in_steps(offset, bufs)).await,
            }
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let engine = Rc::clone(&self.0);
        kept(async move {
            let len = total_len(&bufs);
            match engine.straight_write(offset, len) {
                Some((stay, host)) => {
                    let (result, bufs) = engine.store().write(host, bufs).await;
                    stay.end();
                    (result.map_err(|error| told(error, DiskOp::Write, offset, len)), bufs)
                }
                None => Box::pin(engine.write_in_steps(offset, bufs)).await,
            }
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
