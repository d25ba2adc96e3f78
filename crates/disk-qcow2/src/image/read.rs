//! Reads: mapped runs straight into the caller's buffers, all of a request at once.

use std::sync::Arc;

use disk::{DiskError, DiskFuture, DiskOp, Transferred, total_len};
use guestmem::IoBuf;

use super::fault::{Damage, Fault};
use super::inflate;
use super::map::{Run, What};
use super::parts::{Parts, ended, join, scatter, zero};
use super::state::Engine;
use crate::meta::entry::Compressed;

/// Parts of one request that are in flight at once.
const PARTS_AT_ONCE: usize = 32;

impl Engine {
    /// Fills the buffers from a checked guest range.
    pub(crate) async fn read(&self, guest: u64, bufs: Vec<IoBuf>) -> (Result<(), Fault>, Vec<IoBuf>) {
        let len = total_len(&bufs);
        match self.map(guest, len).await {
            Err(fault) => (Err(fault), bufs),
            Ok(run) if run.len == len => {
                let (result, bufs) = self.read_run(guest, run, bufs).await;
                (result.map_err(Fault::from), bufs)
            }
            Ok(_) => self.read_parts(guest, bufs).await,
        }
    }

    async fn read_parts(&self, guest: u64, bufs: Vec<IoBuf>) -> (Result<(), Fault>, Vec<IoBuf>) {
        let end = guest + total_len(&bufs);
        let mut parts = Parts::new(bufs);
        let mut at = guest;
        let mut result = Ok(());
        while at < end && result.is_ok() {
            let mut batch: Vec<DiskFuture<'_, Transferred>> = Vec::new();
            while at < end && batch.len() < PARTS_AT_ONCE {
                match self.map(at, end - at).await {
                    Ok(run) => {
                        batch.push(self.read_run(at, run, parts.take(run.len)));
                        at += run.len;
                    }
                    Err(fault) => {
                        result = Err(fault);
                        break;
                    }
                }
            }
            for (read, part) in join(batch).await {
                parts.give_back(part);
                result = result.and(read.map_err(Fault::from));
            }
        }
        (result, parts.finish())
    }

    /// Reads one run.
    pub(crate) fn read_run(&self, guest: u64, run: Run, mut bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        match run.what {
            What::Data { host, .. } => self.read_data(host, run.len, bufs),
            What::Zero => ended(zero(&mut bufs), bufs),
            What::Unmapped => {
                let below = self.image.in_backing(guest, run.len);
                match &self.backing {
                    Some(backing) if below == run.len => backing.read(guest, bufs),
                    Some(backing) if below > 0 => Box::pin(short_read(&**backing, guest, below, bufs)),
                    _ => ended(zero(&mut bufs), bufs),
                }
            }
            What::Compressed(data) => Box::pin(async move {
                let start = self.image.layout.in_cluster(guest);
                let result = match self.inflated(data).await {
                    Ok(cluster) => {
                        let range = usize::try_from(start).ok().zip(usize::try_from(start + run.len).ok());
                        let bytes = range.and_then(|(start, end)| cluster.get(start..end));
                        scatter(&mut bufs, bytes.unwrap_or_default())
                    }
                    Err(fault) => Err(fault.of(DiskOp::Read, guest, run.len)),
                };
                (result, bufs)
            }),
        }
    }

    /// Reads bytes of the file. A cluster may be cut short by the file's end; what is missing then is zeroes.
    fn read_data(&self, host: u64, len: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let store = self.store();
        let end = store.geometry().size_bytes;
        if host + len <= end {
            return store.read(host, bufs);
        }
        let cut = self.image.layout.cluster_floor(host + len - 1);
        if cut >= end {
            let fault = Fault::from(Damage::Outside(cut));
            return ended(Err(fault.of(DiskOp::Read, host, len)), bufs);
        }
        Box::pin(short_read(store, host, end.saturating_sub(host), bufs))
    }

    /// The contents of a compressed cluster.
    pub(crate) async fn inflated(&self, data: Compressed) -> Result<Arc<Vec<u8>>, Fault> {
        if let Some(cluster) = self.image.inflated().get(data) {
            return Ok(cluster);
        }
        let end = self.file.geometry().size_bytes;
        if data.offset >= end {
            return Err(Damage::Outside(data.offset).into());
        }
        let start = data.offset & !511;
        let len = (data.offset + data.len).min(end) - start;
        let skip = usize::try_from(data.offset - start).unwrap_or(0);
        let buf = IoBuf::heap(usize::try_from(len).unwrap_or(0), 4096)?;
        let crowd = self.inflating.join();
        let (result, bufs) = self.file.read(start, vec![buf]).await;
        result?;
        let bytes = bufs.first().map(IoBuf::to_vec).unwrap_or_default();
        let cluster_bytes = usize::try_from(self.image.layout.cluster_bytes()).unwrap_or(0);
        let compression = self.image.compression;
        let memory = self.image.inflated().memory(cluster_bytes);
        let job = move || inflate::inflate(compression, bytes.get(skip..).unwrap_or_default(), memory);
        // One alone is soonest done here; of several, each CPU takes its part.
        let plain = match crowd.is_alone() {
            true => job(),
            false => uring::offload(job).await.flatten(),
        };
        drop(crowd);
        let plain = Arc::new(plain.ok_or(Damage::Compressed(data.offset))?);
        self.image.inflated().put(data, Arc::clone(&plain));
        Ok(plain)
    }

    /// Reads a guest range into memory of our own: the source of a copy.
    pub(crate) async fn read_copy(&self, guest: u64, len: u64) -> Result<IoBuf, Fault> {
        let buf = IoBuf::heap(usize::try_from(len).unwrap_or(0), 4096)?;
        let (result, bufs) = self.read(guest, vec![buf]).await;
        result?;
        bufs.into_iter().next().ok_or(Fault::Kind(disk::DiskErrorKind::Io))
    }
}

/// Reads the first `there` bytes, and zeroes the rest.
async fn short_read(disk: &dyn disk::DiskIo, offset: u64, there: u64, bufs: Vec<IoBuf>) -> Transferred {
    let total = total_len(&bufs);
    let mut parts = Parts::new(bufs);
    let mut result: Result<(), DiskError> = Ok(());
    if there > 0 {
        let (read, part) = disk.read(offset, parts.take(there)).await;
        parts.give_back(part);
        result = read;
    }
    let mut rest = parts.take(total - there);
    result = result.and(zero(&mut rest));
    parts.give_back(rest);
    (result, parts.finish())
}
