//! Layers from a registry to files, in one pass: nothing compressed is kept.
//!
//! ```text
//!  registry ─► Feed ─► Fed ─► Inflow ─► Gunzip ─► Tape ─► Taking ─┬─► digests
//!              (again where   SHA-256   Unzstd    the entries     ├─► Inspector
//!               it broke off)                     that count      └─► SparseWriter ─► partial/<hex>/found-N
//! ```
//!
//! The left half runs where async code does, the right half on a thread that may block. Every so many bytes, between two blocks
//! of the compression, what came out is made durable and noted, so that an import after a crash goes on there. zstd can be entered
//! between two frames only, and most layers are one. So that a layer is not fetched from its beginning again and again, it is
//! noted where one of zstd begins, and the import after one that broke off there fetches it whole into `blobs/`, where it can be
//! continued at any byte.

use std::io::{self, Read};

use image_formats::{Expectations, Wrapping};
use tokio::sync::OwnedMutexGuard;

use crate::entering::{Entrance, KeptLayers, Noting, Stream};
use crate::feed::{Fed, Feed};
use crate::fetch::{Blob, fetch, finished_path};
use crate::import::{Job, blocking, until};
use crate::layer::{Compression, LayerError};
use crate::manifest::Plan;
use crate::partial::Partial;
use crate::parts::Failure;
use crate::progress::Meter;
use crate::registry::Registry;
use crate::taking::Judge;
use crate::unpack::{Contents, LayerFile, Unpacker};
use crate::wanted::Wanted;
use crate::{ImportError, Phase, PullError, store};

/// Layers that are shorter are rather fetched again than noted, bytes.
const WORTH_NOTING: u64 = 1 << 20;

/// What the beginning of an image of layers is called by.
pub(crate) fn beginning_of(plan: &Plan) -> String {
    format!("manifest {}", plan.digest)
}

/// An import's layers.
pub(crate) struct Layers {
    partial: Partial,
    unpacker: Unpacker,
    /// The next layer, and where it is entered if not at its beginning.
    next: usize,
    entrance: Option<Entrance>,
    /// An import before broke off in the next layer, or just before it.
    broke_off: bool,
    /// Bytes of the layers before.
    done_bytes: u64,
    wanted: Wanted,
    /// Held while somebody works with the beginning.
    _turn: OwnedMutexGuard<()>,
}

impl Layers {
    /// Of the image that `plan` tells of, as far as an import before came with it.
    pub(crate) async fn begin(job: &Job, plan: &Plan) -> Result<Self, ImportError> {
        let partial = Partial::of(&job.store, &beginning_of(plan));
        let turn = until(&job.stop, async { Ok(job.store.lock(partial.lock_name()).await) }).await?;
        let wanted = job
            .store
            .want(plan.layers.iter().map(|(blob, _)| blob.digest.clone()).collect());
        let fresh = {
            let judge = Judge {
                expected: Expectations {
                    wrapping: Wrapping::Archive,
                    ..job.expected.clone()
                },
                room: job.store.room_beside(Some(&partial))?,
                last_layer: plan.layers.len().saturating_sub(1),
            };
            let (max_bytes, methods) = (job.expected.max_bytes, job.proofs.methods());
            move |partial: &Partial| Unpacker::new(partial.dir(), max_bytes, &methods).judging(judge.clone())
        };
        let layers = blocking(move || {
            let mut unpacker = fresh(&partial);
            let kept = partial.load_layers();
            // What is not as it was noted is made again.
            let kept = kept.filter(|kept| unpacker.take_over(kept).is_ok_and(|same| same));
            if kept.is_none() {
                unpacker = fresh(&partial);
                partial.begin().map_err(ImportError::io("create", partial.dir()))?;
            }
            let broke_off = kept.is_some();
            let (next, midway) = kept.map_or((0, None), |KeptLayers { layer, midway, .. }| (layer, midway));
            Ok(Self {
                partial,
                unpacker,
                next,
                entrance: midway.map(|midway| midway.entrance),
                broke_off,
                done_bytes: 0,
                wanted,
                _turn: turn,
            })
        })
        .await?;
        layers.make_room(job, plan)?;
        Ok(layers)
    }

    /// Fails early when what is to come cannot fit, after dropping what nobody wants.
    fn make_room(&self, job: &Job, plan: &Plan) -> Result<(), ImportError> {
        let root = &job.store.settings().root;
        let measured = |result: io::Result<u64>| result.map_err(ImportError::io("measure", root));
        let all: u64 = plan.layers.iter().map(|(blob, _)| blob.size).sum();
        let here = measured(store::occupied(self.partial.dir()))?;
        let blobs = plan.layers.iter().filter_map(|(blob, _)| {
            let path = finished_path(&job.store.blobs(), &blob.digest);
            path.metadata().ok().map(|metadata| metadata.len())
        });
        let needed = all.saturating_sub(here).saturating_sub(blobs.sum());
        if job.store.has_room(needed) {
            return Ok(());
        }
        job.store.make_way(Some(&self.partial.lock_name()));
        if job.store.has_room(needed) {
            return Ok(());
        }
        Err(ImportError::DiskFull(root.clone()))
    }

    /// Takes all layers in.
    pub(crate) async fn take_in(
        mut self,
        registry: &Registry,
        job: &Job,
        plan: &Plan,
    ) -> Result<(Self, Contents), ImportError> {
        let total: u64 = plan.layers.iter().map(|(blob, _)| blob.size).sum();
        self.done_bytes = plan.layers.iter().take(self.next).map(|(blob, _)| blob.size).sum();
        for (blob, compression) in plan.layers.iter().skip(self.next) {
            let is_here = finished_path(&job.store.blobs(), &blob.digest).exists();
            let again = self.broke_off && self.entrance.is_none() && *compression == Compression::Zstd;
            let result = if is_here || again {
                self.whole(registry, job, blob, *compression, total).await
            } else {
                self.streamed(registry, job, blob, *compression, total).await
            };
            self = result?;
            self.done_bytes += blob.size;
            self.broke_off = false;
        }
        let contents = self.unpacker.finish();
        match contents {
            Ok(contents) => Ok((self, contents)),
            Err(error) => Err(self.failed(error.into())),
        }
    }

    /// A layer that is fetched whole, or was.
    async fn whole(
        mut self,
        registry: &Registry,
        job: &Job,
        blob: &Blob,
        compression: Compression,
        total: u64,
    ) -> Result<Self, ImportError> {
        let store = job.store.clone();
        let fetching = async {
            let mut meter = Meter::new(&job.progress, Phase::Fetching, total);
            meter.add(self.done_bytes);
            let lock = store.lock(format!("blob {}", blob.digest)).await;
            store.check_available()?;
            Ok(fetch(registry, &store.blobs(), blob, lock, &mut meter).await?)
        };
        let layer = LayerFile {
            file: until(&job.stop, fetching).await?,
            digest: blob.digest.clone(),
            compression,
        };
        let (progress, stop, length) = (job.progress.clone(), job.stop.clone(), blob.size);
        blocking(move || {
            let mut meter = Meter::new(&progress, Phase::Unpacking, length);
            let added = self.unpacker.add(&layer, &mut |bytes| {
                meter.add(bytes);
                !stop.is_cancelled()
            });
            // Before the image is there: after a crash behind that nobody would look for the layer.
            match added.and_then(|()| self.note_layer()) {
                Ok(()) => {
                    self.wanted.layer_served(&layer.digest);
                    Ok(self)
                }
                Err(failure) => Err(self.failed(failure.of_import(&layer.digest))),
            }
        })
        .await
    }

    /// Notes that the layers up to here are done. Blocks.
    fn note_layer(&mut self) -> Result<(), Failure> {
        let partial = self.partial.clone();
        self.unpacker.note_layer(&mut Noting {
            every: 0,
            noted: 0,
            note: &mut |kept| partial.note(&kept),
        })
    }

    /// A layer that is taken in as it comes.
    async fn streamed(
        mut self,
        registry: &Registry,
        job: &Job,
        blob: &Blob,
        compression: Compression,
        total: u64,
    ) -> Result<Self, ImportError> {
        let entrance = self.entrance.take();
        let from = entrance.as_ref().map_or(0, Entrance::offset);
        let (feed, fed) = Feed::new(registry, blob, from);
        let feeding = until(&job.stop, async { Ok(feed.run().await?) });
        let (progress, every, blob) = (
            job.progress.clone(),
            job.store.settings().checkpoint_bytes,
            blob.clone(),
        );
        let walking = tokio::task::spawn_blocking(move || {
            let is_noted = compression == Compression::Zstd && from == 0 && blob.size >= WORTH_NOTING;
            if is_noted && let Err(failure) = self.note_layer() {
                return (self, Err(failure.of_import(&blob.digest)));
            }
            let mut meter = Meter::new(&progress, Phase::Fetching, total);
            meter.add(self.done_bytes + from);
            let input: Box<dyn Read> = Box::new(Metered { input: fed, meter });
            let stream = match &entrance {
                None => Stream::begin(input, blob.size, compression),
                Some(entrance) => Stream::enter(input, blob.size, entrance),
            };
            let result = match stream {
                Some(stream) => self.walk(stream, &blob, every, from),
                // What was noted is no place to enter at, or there is no memory.
                None => Err(PullError::Cancelled.into()),
            };
            (self, result)
        });
        let (fed, walked) = tokio::join!(feeding, walking);
        // The runtime is shutting down, or the work panicked and said so.
        let (layers, walked) = walked.map_err(|_| ImportError::Cancelled)?;
        // Without bytes the walk ends with an error that says less.
        match fed.and(walked) {
            Ok(()) => Ok(layers),
            Err(error) => Err(layers.failed(error)),
        }
    }

    /// Takes a layer in and verifies it. Blocks.
    fn walk(&mut self, stream: Stream<'_>, blob: &Blob, every: u64, noted: u64) -> Result<(), ImportError> {
        let partial = self.partial.clone();
        let mut noting = Noting {
            every,
            noted,
            note: &mut |kept| partial.note(&kept),
        };
        let (stream, result) = self.unpacker.add_stream(stream, Some(&mut noting));
        match result {
            // It may be because the bytes are not those that were asked for.
            Ok(()) | Err(Failure::Layer(LayerError::Damaged(_) | LayerError::Truncated)) => {}
            Err(failure) => return Err(failure.of_import(&blob.digest)),
        }
        match stream.finish() {
            Ok(Some(found)) if found != blob.digest => {
                return Err(ImportError::Registry(PullError::DigestMismatch {
                    subject: "blob".to_owned(),
                    expected: blob.digest.clone(),
                    found,
                }));
            }
            Ok(_) => result.map_err(|failure| failure.of_import(&blob.digest))?,
            Err(error) => {
                result.map_err(|failure| failure.of_import(&blob.digest))?;
                return Err(Failure::reading(error).of_import(&blob.digest));
            }
        }
        if blob.size < WORTH_NOTING {
            return Ok(());
        }
        let noted = self.unpacker.note_layer(&mut noting);
        noted.map_err(|failure| failure.of_import(&blob.digest))
    }

    /// Keeps what the next import can go on with; for anything else it begins anew.
    fn failed(self, error: ImportError) -> ImportError {
        if !error.is_transient() {
            self.partial.discard();
        }
        error
    }

    /// The import has ended.
    pub(crate) fn end<T>(self, result: Result<T, ImportError>) -> Result<T, ImportError> {
        match result {
            Ok(done) => {
                self.partial.discard();
                self.wanted.served();
                Ok(done)
            }
            Err(error) => Err(self.failed(error)),
        }
    }
}

/// Tells how much has come.
struct Metered<'a> {
    input: Fed,
    meter: Meter<'a>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.meter.add(count as u64);
        Ok(count)
    }
}
