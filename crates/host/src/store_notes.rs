//! What is remembered of further stores outside of them, and what is known of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use images::{ImageDigest, ImageRecord, Recovery, Store, StoreError, StoreName, Stores};

use crate::context::Context;
use crate::failure::chain;

/// The directory of what is remembered of further stores, outside of them.
pub(crate) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("stores")
}

/// The file that has the identity of a store.
pub(crate) fn identity(state_dir: &Path, name: &StoreName) -> PathBuf {
    directory(state_dir).join(format!("{name}.id"))
}

/// The file of images that are to go from a store when it is back.
pub(crate) fn owed(state_dir: &Path, name: &StoreName) -> PathBuf {
    directory(state_dir).join(format!("{name}.owed"))
}

/// The images that are to go from a store when it is back. Blocks shortly.
pub(crate) fn debts(state_dir: &Path, store: &StoreName) -> io::Result<BTreeSet<ImageDigest>> {
    match std::fs::read_to_string(owed(state_dir, store)) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// The images of all stores that are there, but for what was deleted while its store was away. A further store that can not be read,
/// or does not answer, keeps nobody from the others. Blocks.
pub(crate) fn sealed(state_dir: &Path, stores: &Stores) -> Result<Vec<ImageRecord>, StoreError> {
    let mut sealed = Vec::new();
    for store in stores.all() {
        let is_default = store.name() == stores.default_name();
        let found = debts(state_dir, store.name()).map_err(|source| StoreError::Io {
            action: "read what is owed to",
            path: owed(state_dir, store.name()),
            source,
        });
        // Nothing works without the default one, however long it takes.
        let list = || match is_default {
            true => store.list(),
            false => store.ask_now(|store| store.check_available().and_then(|()| store.list())),
        };
        match found.and_then(|owed| Ok((owed, list()?))) {
            Ok((owed, listed)) => sealed.extend(listed.into_iter().filter(|image| !owed.contains(&image.digest))),
            Err(error) if is_default => return Err(error),
            // That was told already, or will be; what is in it gets records when it is back.
            Err(StoreError::Unavailable { .. }) => {}
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(store = %store.name(), error, "the images of a store can not be listed");
            }
        }
    }
    Ok(sealed)
}

/// Notes that an image is to go from a store that is not there. Durable when it returns. Blocks.
pub(crate) fn owe(context: &Context, store: &StoreName, digest: &ImageDigest) -> Result<(), StoreError> {
    let path = owed(&context.config.state_dir, store);
    let noted = || -> io::Result<()> {
        let mut file = std::fs::File::options().create(true).append(true).open(&path)?;
        file.write_all(format!("{digest}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::File::open(directory(&context.config.state_dir))?.sync_all()
    };
    noted().map_err(|source| StoreError::Io {
        action: "note what is to be removed in",
        path: path.clone(),
        source,
    })
}

/// Tells of what was found left over in a store.
pub(crate) fn log_recovery(store: &StoreName, recovery: &Recovery) {
    if recovery.removed > 0 || !recovery.damaged.is_empty() {
        tracing::warn!(
            %store,
            removed = recovery.removed,
            damaged = recovery.damaged.len(),
            "image store was cleaned"
        );
    }
}

/// Which stores' files can share blocks, as far as it is known when the daemon starts: of the default one. Blocks shortly.
pub(crate) fn first_trial(default: &Store) -> Mutex<BTreeMap<StoreName, bool>> {
    let can = default.can_reflink();
    Mutex::new(can.map(|can| (default.name().clone(), can)).into_iter().collect())
}

impl Context {
    /// Tries whether the files of a store can share blocks, unless that is known. It is not while nothing can be written there.
    pub(crate) async fn learn_reflinks(&self, store: &Store) {
        if self.reflinks_of(store.name()).is_some() {
            return;
        }
        let tried = store.ask(|store| store.check_writable().map(|()| store.can_reflink()));
        if let Ok(Some(can)) = tried.await {
            self.reflinks().insert(store.name().clone(), can);
        }
    }

    /// Whether the files of a store can share blocks; none while that is not known.
    pub(crate) fn reflinks_of(&self, store: &StoreName) -> Option<bool> {
        self.reflinks().get(store).copied()
    }
}
