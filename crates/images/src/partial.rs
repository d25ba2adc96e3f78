//! What an import of a stream has so far, kept for the next one.
//!
//! ```text
//! <root>/partial/<sha256 of the location>/incoming     the disk up to `offset`, sparse
//! <root>/partial/<sha256 of the location>/state.json   offset and identity of the source; written when the bytes are durable
//!
//! <root>/partial/<sha256 of the manifest>/found-N      files out of layers, sparse; the last one perhaps only its beginning
//! <root>/partial/<sha256 of the manifest>/state.json   where in which layer that was, and how to go on decompressing there
//! ```
//!
//! What nobody went on with for a week goes, when the store opens and when an import begins.
//!
//! Of the web only disks that are stored as they pass are kept: there a compressed stream is not entered in its middle. Whether
//! the source is still the same object is for `image-sources` to prove; without an entity tag or date nothing is kept. Layers
//! are named by their content, and those of gzip can be entered: [`crate::gunzip`]; those of zstd between frames: [`crate::unzstd`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_sources::Identity;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::entering::KeptLayers;
use crate::{ImageDigest, Store, durable};

/// Name of the disk's beginning.
const INCOMING: &str = "incoming";
/// Name of what is known of it.
const STATE: &str = "state.json";
/// Most of a state that is read, bytes: identities are bounded; the files of layers are 64 at most, and a window of gzip is
/// 64 KiB as digits.
const STATE_MAX: u64 = 1 << 20;

/// How far an import came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    /// Bytes that need not be fetched again.
    pub(crate) offset: u64,
    /// What they are of.
    pub(crate) identity: Identity,
}

/// The place for one source. Whoever works with it holds the store's lock of [`Partial::lock_name`].
#[derive(Clone)]
pub(crate) struct Partial {
    store: Store,
    dir: PathBuf,
}

impl Partial {
    /// Of the source at `location`.
    pub(crate) fn of(store: &Store, location: &str) -> Self {
        let key = ImageDigest::of(location.as_bytes()).hex();
        Self {
            store: store.clone(),
            dir: store.partial().join(key),
        }
    }

    /// Name of the lock.
    pub(crate) fn lock_name(&self) -> String {
        lock_name(&self.dir)
    }

    /// The disk's beginning.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join(INCOMING)
    }

    /// Where all of it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn state<T: DeserializeOwned>(&self) -> Option<T> {
        use std::io::Read;
        let mut text = Vec::new();
        let file = File::open(self.dir.join(STATE)).ok()?;
        file.take(STATE_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// What an import of layers left, if it can be gone on with.
    pub(crate) fn load_layers(&self) -> Option<KeptLayers> {
        self.state()
    }

    /// What an import before left, if it can be gone on with.
    pub(crate) fn load(&self) -> Option<Kept> {
        let kept: Kept = self.state()?;
        let there = self.file().metadata().ok()?.len();
        (kept.offset > 0 && kept.offset <= there).then_some(kept)
    }

    /// Makes room for a new beginning.
    pub(crate) fn begin(&self) -> io::Result<()> {
        self.discard();
        self.store.make_dir(&self.dir)
    }

    /// Notes what is durable: a [`Kept`] or [`KeptLayers`].
    pub(crate) fn note(&self, kept: &impl Serialize) -> io::Result<()> {
        let path = self.dir.join("state.new");
        std::fs::write(&path, serde_json::to_vec(kept)?)?;
        File::open(&path)?.sync_all()?;
        std::fs::rename(&path, self.dir.join(STATE))?;
        durable::sync_dir(&self.dir)
    }

    /// Forgets it all.
    pub(crate) fn discard(&self) {
        if let Err(error) = durable::remove_all(&self.dir) {
            tracing::warn!(path = %self.dir.display(), "cannot remove the beginning of an image: {error}");
        }
    }
}

/// How long ago something was noted of the beginning in `dir`; none if that cannot be told.
pub(crate) fn age(dir: &Path) -> Option<Duration> {
    dir.join(STATE).metadata().ok()?.modified().ok()?.elapsed().ok()
}

/// Name of the lock of the beginning in `dir`.
pub(crate) fn lock_name(dir: &Path) -> String {
    format!("partial {}", dir.file_name().unwrap_or_default().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_noted_and_there_is_gone_on_with() {
        let root = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(crate::Settings {
            root: root.path().to_path_buf(),
            ..crate::Settings::default()
        })
        .unwrap();
        let partial = Partial::of(&store, "https://mirror.test/disk.raw");
        assert_eq!(partial.load(), None);
        partial.begin().unwrap();
        std::fs::write(partial.file(), [1; 8192]).unwrap();
        assert_eq!(partial.load(), None);
        let kept = |offset| Kept {
            offset,
            identity: Identity {
                etag: Some("\"a\"".to_owned()),
                ..Identity::default()
            },
        };
        partial.note(&kept(4096)).unwrap();
        assert_eq!(partial.load(), Some(kept(4096)));
        partial.note(&kept(16_384)).unwrap();
        assert_eq!(partial.load(), None, "the file is shorter");
        std::fs::write(root.path().join("partial").join("0"), "").unwrap();
        let place = partial.dir.clone();
        // Each holds the store.
        drop((store, partial));
        let (store, recovery) = Store::open(crate::Settings {
            root: root.path().to_path_buf(),
            ..crate::Settings::default()
        })
        .unwrap();
        let partial = Partial::of(&store, "https://mirror.test/disk.raw");
        assert_eq!(partial.dir, place);
        assert_eq!(recovery.removed, 1, "what nobody noted goes");
        assert!(store.partial().join(partial.dir.file_name().unwrap()).exists());
        // It is told of, counts for the quota unless it is the import's own, and goes when it is old.
        let found = store.fsck(&crate::Examination::default(), &|| false).unwrap();
        let name = format!("partial/{}", partial.dir.file_name().unwrap().to_string_lossy());
        assert!(
            matches!(&found[..], [crate::Finding::Beginning { name: found, bytes, .. }] if *found == name && *bytes > 8000),
            "{found:?}"
        );
        let week = Duration::from_secs(7 * 86_400 - 60);
        let state = || File::options().write(true).open(partial.dir.join(STATE)).unwrap();
        state().set_modified(std::time::SystemTime::now() - week).unwrap();
        store.drop_aged();
        assert!(partial.dir.exists());
        state()
            .set_modified(std::time::SystemTime::now() - week - Duration::from_secs(120))
            .unwrap();
        store.drop_aged();
        assert!(!partial.dir.exists());
        partial.begin().unwrap();
        std::fs::write(partial.file(), [1; 8192]).unwrap();
        assert!(store.drop_unused_blobs().unwrap() > 0);
        assert!(!partial.dir.exists());
    }
}
