//! Writing compressed clusters, for conversions.
//!
//! Several share a host cluster, each from a sector of its own on, so that none is written together with another.
//! Invariant: the host cluster that is being filled holds one reference of the filler's own, so that it can not be released
//! while more may come; the filler drops it when it goes on to the next, or when the image is closed. A crash leaks it.

use std::rc::Rc;

use disk::{DiskError, DiskErrorKind, DiskOp};
use guestmem::IoBuf;

use super::allocate::Claim;
use super::deflate::deflate;
use super::fault::{Damage, Fault};
use super::open::Qcow2Disk;
use super::state::{Engine, Filling};
use crate::meta::entry::{Compressed, L2Entry, Place};

/// Writes whole clusters of an image compressed; of one thread. Any number of them may work on one image.
pub struct Compressor(Rc<Engine>);

impl Qcow2Disk {
    /// A way to write compressed clusters, for the calling thread.
    ///
    /// # Errors
    /// A queue of the file can not be had, or the image is read-only or keeps its data in another file.
    pub fn compressor(&self) -> Result<Compressor, DiskError> {
        let engine = self.engine()?;
        if engine.image.access == disk::Access::ReadOnly {
            return Err(DiskError::new(DiskOp::Write, DiskErrorKind::ReadOnly));
        }
        if engine.data.is_some() {
            return Err(DiskError::new(DiskOp::Write, DiskErrorKind::Unsupported));
        }
        Ok(Compressor(engine))
    }
}

impl Compressor {
    /// Length of what [`Compressor::write`] takes, bytes.
    pub fn cluster_bytes(&self) -> u64 {
        self.0.image.layout.cluster_bytes()
    }

    /// Writes the guest cluster at `offset`: compressed if that saves anything, else as it is. Visible when this returns,
    /// durable after a flush. The future is to be awaited to its end.
    ///
    /// # Errors
    /// `offset` and length are not those of a cluster of the disk (its last may be shorter), or the file fails.
    pub async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let engine = &self.0;
        let layout = engine.image.layout;
        let len = bytes.len() as u64;
        engine.image.geometry(512).check(DiskOp::Write, offset, len)?;
        let whole = layout.cluster_bytes().min(engine.image.size_bytes() - offset);
        if layout.in_cluster(offset) != 0 || len != whole {
            return Err(DiskError::new(DiskOp::Write, DiskErrorKind::Misaligned).at(offset, len));
        }
        let told = |fault: Fault| fault.of(DiskOp::Write, offset, len);
        engine.prepare().await.map_err(told)?;
        let stay = engine.image.tables().epochs.enter();
        let result = engine.write_compressed(offset, bytes).await;
        stay.end();
        result.map_err(told)
    }
}

impl Engine {
    async fn write_compressed(&self, guest: u64, bytes: &[u8]) -> Result<(), Fault> {
        let layout = self.image.layout;
        let cluster_bytes = usize::try_from(layout.cluster_bytes()).unwrap_or(0);
        let mut plain = std::borrow::Cow::Borrowed(bytes);
        if plain.len() < cluster_bytes {
            plain.to_mut().resize(cluster_bytes, 0);
        }
        let Some(mut data) = deflate(self.image.compression, &plain) else {
            return self.write(guest, vec![IoBuf::from_bytes(bytes)?]).await.0;
        };
        data.resize(data.len().next_multiple_of(512), 0);
        self.relieve().await?;
        let place = self.place_compressed(data.len() as u64).await?;
        // A failure from here on leaks the place.
        self.file.write(place.offset, vec![IoBuf::from_bytes(&data)?]).await.0?;
        let cluster = guest >> layout.cluster_bits;
        let range = self.hold(cluster..cluster + 1).await;
        let table = self.writable_table(guest).await?;
        let entry = L2Entry {
            place: Place::Compressed(place),
            allocated: L2Entry::all(layout),
            zero: 0,
        };
        self.step(|tables| tables.link(table, guest, entry)).await?;
        drop(range);
        Ok(())
    }

    /// A place for `len` bytes, whole sectors, with a reference to its cluster.
    async fn place_compressed(&self, len: u64) -> Result<Compressed, Fault> {
        let layout = self.image.layout;
        let mut filling = self.image.filling.lock().await;
        if let Some(now) = *filling
            && now.used + len <= layout.cluster_bytes()
            && self.add_reference(now.cluster).await?
        {
            *filling = Some(Filling {
                used: now.used + len,
                ..now
            });
            let offset = (now.cluster << layout.cluster_bits) + now.used;
            return Ok(Compressed { offset, len });
        }
        self.leave(filling.take()).await?;
        let Claim { first, .. } = self.allocate(1).await?;
        // The claim's reference is the data's; the filler needs one of its own, unless counts can not go so far.
        if self.add_reference(first).await? {
            *filling = Some(Filling {
                cluster: first,
                used: len,
            });
        }
        let offset = first << layout.cluster_bits;
        Ok(Compressed { offset, len })
    }

    /// `false` if the count can not be raised.
    async fn add_reference(&self, cluster: u64) -> Result<bool, Fault> {
        let most = self.image.layout.refcount_max();
        self.step(|tables| {
            let count = tables.refcount(cluster)?;
            if count >= most {
                return Ok(false);
            }
            tables.set_refcounts(cluster, 1, count + 1)?;
            Ok(true)
        })
        .await
    }

    /// Goes on to another cluster.
    async fn leave(&self, filling: Option<Filling>) -> Result<(), Fault> {
        let Some(Filling { cluster, .. }) = filling else {
            return Ok(());
        };
        let bits = self.image.layout.cluster_bits;
        self.step(|tables| {
            let count = tables.refcount(cluster)?;
            let less = count.checked_sub(1).ok_or(Damage::Refcount(cluster << bits))?;
            tables.set_refcounts(cluster, 1, less)
        })
        .await?;
        // If it is free now, other data may come to the same place.
        self.image.inflated().clear();
        Ok(())
    }

    /// No more compressed clusters come for now.
    pub(crate) async fn leave_filling(&self) -> Result<(), Fault> {
        let mut filling = self.image.filling.lock().await;
        let left = filling.take();
        self.leave(left).await
    }
}
