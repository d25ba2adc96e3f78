//! Imports: from any source to a sealed image, in one pass.
//!
//! ```text
//!   what proves it ─► foreseen refusals ─► source ─► pass ─► judged ─► converted if foreign ─► sealed
//!   (sums file,       (policy says no       web, s3, file, upload: `intake`
//!    signatures)       to all of it)        registry: layers, `unpack`
//! ```

use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_formats::{DecompressLimits, Expectations};
use image_sources::{Identity, Opened, Source};
use image_trust::DigestSet;
use image_trust::policy::{Grounds, TrustPolicy, Verdict};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::ending::{self, Parts};
use crate::intake::{Pass, Resumable, Room, Taken};
use crate::partial::{Kept, Partial};
use crate::progress::Meter;
use crate::proof::{Proofs, trusted_source};
use crate::registry::{Intent, Registry};
use crate::seal::{DiskFile, Sealing, Workspace, now_s};
use crate::store::{INITRD, KERNEL};
use crate::{
    ImageDigest, ImportError, ImportRequest, ImportSource, Imported, Origin, Phase, Progress, Reference, Store,
};

/// How far the network may be ahead of the pass, bytes.
const AHEAD_BYTES: u32 = 4 << 20;
/// Name of a disk being taken in, inside a workspace.
const INCOMING: &str = "incoming";
/// How much more the decompressor lets out than the image may have, bytes: the inspection then tells that it is too long.
const OVERHANG_BYTES: u64 = 1 << 20;

impl Store {
    /// Imports an image, unless the store has the same bytes already. `progress` is updated as the work goes on.
    ///
    /// Ends with [`ImportError::Cancelled`] soon after `cancel` is triggered; dropping the future does the same. Finished and
    /// partial layers of container disks stay for the next import, nothing else does. The stores that the request names are not
    /// looked at: see [`crate::Stores::import`].
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn import(
        &self,
        request: ImportRequest,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Imported, ImportError> {
        let stop = cancel.child_token();
        let _stop_when_dropped = stop.clone().drop_guard();
        let result = self.import_steps(request, progress, &stop).await;
        match result {
            Err(_) if stop.is_cancelled() => Err(ImportError::Cancelled),
            result => result,
        }
    }

    /// What a source is now, without its bytes: to be compared with the origin of an earlier import.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn probe(&self, source: &ImportSource) -> impl Future<Output = Result<Origin, ImportError>> + Send + use<> {
        // Uploads can not be shared between threads, so the future holds no reference to the source.
        let (store, object) = (self.clone(), source.object());
        let reference = match source {
            ImportSource::Registry { reference } => Some(reference.clone()),
            _ => None,
        };
        let stored = match source {
            ImportSource::Stored { digest, store } => Some((digest.clone(), store.clone())),
            _ => None,
        };
        async move {
            if let Some(source) = object {
                let identity = source.probe().await.map_err(ImportError::Source)?;
                return Ok(Origin::Object { identity });
            }
            if let Some(reference) = reference {
                let registry = store.connect(&reference)?;
                let digest = registry.manifest_digest(&reference.manifest_name()).await?;
                return Ok(Origin::Registry { digest });
            }
            let Some((digest, store)) = stored else {
                return Ok(Origin::Upload);
            };
            let wanted = digest.clone();
            store.ask(move |store| store.get(&wanted).map(drop)).await?;
            Ok(Origin::Stored { digest })
        }
    }

    pub(crate) fn connect(&self, reference: &Reference) -> Result<Registry, ImportError> {
        Ok(Registry::connect(
            reference,
            self.settings(),
            &self.0.agents,
            Intent::Pull,
        )?)
    }

    async fn import_steps(
        &self,
        request: ImportRequest,
        progress: &watch::Sender<Progress>,
        stop: &CancellationToken,
    ) -> Result<Imported, ImportError> {
        Meter::new(progress, Phase::Resolving, 0);
        let look = |store: &Self| {
            store.check_writable()?;
            store.drop_aged();
            Ok(())
        };
        until(stop, async { Ok(self.ask(look).await?) }).await?;
        let object = request.source.object();
        let mut job = Job {
            store: self.clone(),
            trusted: trusted_source(&request.source)?,
            location: request.source.location(),
            expected: self.bounded(request.expected),
            trust: request.trust,
            proofs: until(stop, Proofs::fetch(request.evidence)).await?,
            origin: Origin::Upload,
            total_bytes: 0,
            progress: progress.clone(),
            stop: stop.clone(),
        };
        match (request.source, object) {
            (ImportSource::Registry { reference }, _) => job.registry(&reference).await,
            (ImportSource::Stored { digest, store }, _) => {
                job.origin = Origin::Stored { digest: digest.clone() };
                until(stop, async { Ok(store.ask(Self::check_available).await?) }).await?;
                blocking(move || job.copy(&store, &digest)).await
            }
            (_, Some(source)) => job.object(&source).await,
            (ImportSource::LocalDisk(disk), _) => {
                job.proofs.sign(&job.trust);
                job.proofs.foresee(&job.trust, &job.trusted)?;
                blocking(move || job.local_disk(&disk)).await
            }
            (ImportSource::Upload(mut reader), _) => {
                job.proofs.foresee(&job.trust, &job.trusted)?;
                blocking(move || job.stream(&mut *reader, None)).await
            }
            // All sources that are objects were taken above.
            (source, None) => {
                tracing::error!(?source, "a source that is of no kind");
                Err(ImportError::Cancelled)
            }
        }
    }

    /// The request's bounds, no wider than the store's.
    fn bounded(&self, mut expected: Expectations) -> Expectations {
        let own = Expectations::up_to(self.settings().max_disk_bytes);
        expected.max_virtual_bytes = expected.max_virtual_bytes.min(own.max_virtual_bytes);
        expected.max_bytes = expected.max_bytes.min(own.max_bytes);
        expected
    }
}

/// Waits for `work`, but not beyond a stop.
pub(crate) async fn until<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, ImportError>>,
) -> Result<T, ImportError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(ImportError::Cancelled),
        result = work => result,
    }
}

/// Runs `work` where blocking is allowed; it looks after stops by itself.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImportError> + Send + 'static,
) -> Result<T, ImportError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The runtime is shutting down, or the work panicked and said so.
        Err(_) => Err(ImportError::Cancelled),
    }
}

/// Ends a fetch when it goes.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One import.
pub(crate) struct Job {
    pub(crate) store: Store,
    pub(crate) trusted: image_trust::Source,
    pub(crate) location: String,
    pub(crate) expected: Expectations,
    pub(crate) trust: Arc<TrustPolicy>,
    pub(crate) proofs: Proofs,
    pub(crate) origin: Origin,
    /// Length of the source, bytes; 0 if nobody knows.
    pub(crate) total_bytes: u64,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) stop: CancellationToken,
}

impl Job {
    /// Names and seals `parts`, whose bytes came with these `digests` and were found to be right. Blocks.
    pub(crate) fn end(
        &self,
        sealing: &Sealing<'_>,
        parts: Parts,
        verdict: Verdict,
        digests: DigestSet,
    ) -> Result<Imported, ImportError> {
        let from = ending::Source {
            location: self.location.clone(),
            origin: self.origin.clone(),
        };
        ending::end(sealing, parts, from, verdict, digests)
    }

    /// A web server's or object store's object, or a local file.
    async fn object(mut self, source: &Source) -> Result<Imported, ImportError> {
        self.proofs.foresee(&self.trust, &self.trusted)?;
        let stop = self.stop.clone();
        let partial = Partial::of(&self.store, &self.location);
        let turn = until(&stop, async { Ok(self.store.lock(partial.lock_name()).await) }).await?;
        let (opened, there) = until(&stop, open(source, &partial)).await?;
        let identity = opened.identity().clone();
        self.origin = Origin::Object {
            identity: identity.clone(),
        };
        self.total_bytes = opened.length_bytes().unwrap_or(0);
        // A local file is as quickly read again.
        let comparable = identity.etag.is_some() || identity.modified.is_some();
        let keeps = there > 0 || (comparable && !matches!(source, Source::File(_)));
        let begun = keeps.then_some(Begun {
            partial,
            identity,
            there,
        });
        let mut reader = opened.into_read(&Handle::current(), AHEAD_BYTES);
        let fetch = AbortOnDrop(reader.abort_handle());
        let work = blocking(move || {
            // Held until nobody works with the beginning any more.
            let _turn = turn;
            self.stream(&mut reader, begun.as_ref())
        });
        tokio::pin!(work);
        tokio::select! {
            biased;
            () = stop.cancelled() => drop(fetch),
            result = &mut work => return result,
        }
        // The pass ends with the fetch, and cleans up.
        work.await
    }

    /// Takes a stream in, judges and seals it. Blocks.
    fn stream(&self, reader: &mut dyn Read, begun: Option<&Begun>) -> Result<Imported, ImportError> {
        let workspace = Workspace::make(&self.store)?;
        let (dir, room) = (
            workspace.0.as_path(),
            self.store.room_beside(begun.map(|begun| &begun.partial))?,
        );
        let path = dir.join(INCOMING);
        let taken = match begun {
            None => self.take_in(reader, path.clone(), &room, None),
            Some(begun) => self.go_on(reader, &path, &room, begun),
        };
        let Taken {
            inspection,
            digests,
            packed,
            file_sha256,
            source_path,
        } = taken?;
        let verdict = self
            .proofs
            .judge(&self.trust, &self.trusted, &digests, packed.as_ref())?;
        let sealing = self.sealing(dir, &room);
        let placed = sealing.place_disk(DiskFile {
            path,
            inspection,
            sha256: file_sha256.as_deref().and_then(ImageDigest::from_bytes),
            source_path,
        })?;
        self.end(&sealing, Parts::of_disk(placed), verdict, digests)
    }

    /// The pass.
    fn take_in(
        &self,
        reader: &mut dyn Read,
        target: PathBuf,
        room: &Room,
        resumable: Option<Resumable<'_>>,
    ) -> Result<Taken, ImportError> {
        let mut meter = Meter::new(&self.progress, Phase::Fetching, self.total_bytes);
        let pass = Pass {
            target,
            expected: &self.expected,
            unpack: DecompressLimits::up_to(self.expected.max_bytes.saturating_add(OVERHANG_BYTES)),
            methods: &self.proofs.methods(),
            room: room.clone(),
            resumable,
            seen: &mut |bytes| {
                meter.add(bytes);
                !self.stop.is_cancelled()
            },
        };
        pass.run(reader)
    }

    /// The pass over a source that can be entered where an import before ended; the disk is at `path` then.
    fn go_on(&self, reader: &mut dyn Read, path: &Path, room: &Room, begun: &Begun) -> Result<Taken, ImportError> {
        let Begun {
            partial,
            identity,
            there,
        } = begun;
        let file = partial.file();
        let mut before: Box<dyn Read> = Box::new(std::io::empty());
        if *there == 0 {
            partial.begin().map_err(ImportError::io("create", &file))?;
        } else {
            let known = File::open(&file).map_err(ImportError::io("open", &file))?;
            before = Box::new(known.take(*there));
        }
        let resumable = Resumable {
            there: *there,
            every: self.store.settings().checkpoint_bytes,
            note: &mut |offset| {
                let identity = identity.clone();
                partial.note(&Kept { offset, identity })
            },
        };
        let taken = self.take_in(&mut before.chain(reader), file.clone(), room, Some(resumable));
        match taken {
            Ok(taken) => {
                std::fs::rename(&file, path).map_err(ImportError::io("rename", &file))?;
                partial.discard();
                Ok(taken)
            }
            Err(error) => {
                let is_full = matches!(error, ImportError::DiskFull(_) | ImportError::Quota { .. });
                if error.is_refusal() || is_full || partial.load().is_none() {
                    partial.discard();
                }
                Err(error)
            }
        }
    }

    pub(crate) fn sealing<'a>(&'a self, dir: &'a Path, room: &'a Room) -> Sealing<'a> {
        Sealing {
            store: &self.store,
            dir,
            room,
            progress: &self.progress,
            stop: &self.stop,
        }
    }

    /// An image of another store. Blocks.
    fn copy(self, from: &Store, digest: &ImageDigest) -> Result<Imported, ImportError> {
        let mut image = from.get(digest)?;
        let workspace = Workspace::make(&self.store)?;
        let (dir, room) = (workspace.0.as_path(), self.store.room()?);
        room.check(crate::store::occupied(&from.image_dir(digest)).map_err(ImportError::io("measure", dir))?)?;
        let mut meter = Meter::new(&self.progress, Phase::Fetching, image.disk.file_bytes);
        let kernel = image.kernel.as_ref().map(|_| KERNEL);
        let initrd = image.initrd.as_ref().map(|_| INITRD);
        for name in [Some(image.disk.format.file_name()), kernel, initrd]
            .into_iter()
            .flatten()
        {
            let (source, target) = (from.image_dir(digest).join(name), dir.join(name));
            crate::clone::copy_sealed(&source, &target, &|| self.stop.is_cancelled()).map_err(|error| {
                if self.stop.is_cancelled() {
                    ImportError::Cancelled
                } else {
                    ImportError::io("copy", &target)(error)
                }
            })?;
        }
        meter.set(image.disk.file_bytes);
        let sealing = self.sealing(dir, &room);
        let parts = [
            Some((image.disk.format.file_name(), &mut image.disk.digest)),
            image.kernel.as_mut().map(|file| (KERNEL, &mut file.digest)),
            image.initrd.as_mut().map(|file| (INITRD, &mut file.digest)),
        ];
        for (name, known) in parts.into_iter().flatten() {
            let found = sealing.hash(&dir.join(name))?;
            // Images of version 1 get digests so.
            let expected = known.get_or_insert_with(|| found.clone());
            if *expected != found {
                return Err(ImportError::Store(crate::StoreError::Damaged {
                    digest: digest.clone(),
                    problem: format!("its {name} has digest {found} instead of {expected}"),
                }));
            }
        }
        image.imported_at_s = now_s();
        let (image, was_there) = sealing.seal(image)?;
        Ok(Imported {
            image,
            was_there,
            origin: self.origin.clone(),
            verdict: Verdict::Accepted(Grounds {
                rule: None,
                proofs: Vec::new(),
            }),
            digests: None,
        })
    }
}

/// An object whose import may have been begun before.
struct Begun {
    partial: Partial,
    identity: Identity,
    /// Bytes that are there.
    there: u64,
}

/// Opens a source behind what is there of it; returns how much that is.
async fn open(source: &Source, partial: &Partial) -> Result<(Opened, u64), ImportError> {
    if let Some(Kept { offset, identity }) = partial.load() {
        match source.open_at(offset, Some(&identity)).await {
            Ok(opened) => return Ok((opened, offset)),
            Err(error) if error.is_transient() => return Err(ImportError::Source(error)),
            Err(error) => tracing::info!(source = source.location(), "an import begins anew: {error}"),
        }
    }
    let opened = source.open().await.map_err(ImportError::Source)?;
    Ok((opened, 0))
}
