//! Several stores under one roof: directories, mostly on file systems of their own.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::answering::Opens;
use crate::{
    ImageDigest, ImportError, ImportRequest, ImportSource, Imported, OpenError, Progress, Recovery, RequestedProof,
    Settings, Store, StoreError, StoreName, Usage,
};

/// Why stores cannot be opened together.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// There is none.
    #[error("no image store is configured; name at least one")]
    None,
    /// Two have one name.
    #[error("two image stores are called {0}; give each a name of its own")]
    Twice(StoreName),
    /// The default is none of them.
    #[error("the default image store {0} is not among the stores")]
    NoDefault(StoreName),
    /// The default one cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// A store that could not be opened: the others work without it, and [`Store::tend`] opens it once that can be done.
#[derive(Debug)]
pub struct Closed {
    /// Which.
    pub name: StoreName,
    /// Why.
    pub error: OpenError,
}

/// How one store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreState {
    /// Which.
    pub name: StoreName,
    /// Whether images go there unless another is named.
    pub is_default: bool,
    /// What it occupies; none while it is not available.
    pub usage: Option<Usage>,
    /// Most disk space its images may take, bytes.
    pub quota_bytes: Option<u64>,
    /// Whether it can be used.
    pub health: StoreHealth,
    /// Why it can not be written to, or not be used at all; none if it can.
    pub problem: Option<String>,
    /// Whether it is on the file system of `/`; none while it is not available.
    pub shares_root: Option<bool>,
    /// Images in it; none while it is not available.
    pub images: Option<u64>,
}

/// Whether a store can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreHealth {
    /// For everything.
    Ready,
    /// Its images can be read, and nothing comes or goes.
    ReadOnly,
    /// For nothing.
    Unavailable,
}

/// What an import into several stores came to.
#[derive(Debug)]
pub struct Placed {
    /// The import into the first store.
    pub imported: Imported,
    /// Stores that have the image now, in the order of the request.
    pub stores: Vec<StoreName>,
    /// Stores that it did not get into, with the reason; only where that was allowed.
    pub failed: Vec<(StoreName, ImportError)>,
}

/// An import that not all of its stores took.
#[derive(Debug)]
pub struct NotPlaced {
    /// Why.
    pub error: ImportError,
    /// What it brought into stores that did not have it before, and is still there.
    pub left: Option<ImageDigest>,
}

impl From<ImportError> for NotPlaced {
    fn from(error: ImportError) -> Self {
        Self { error, left: None }
    }
}

/// Several stores, one of them the default.
#[derive(Clone)]
pub struct Stores {
    stores: BTreeMap<StoreName, Store>,
    default: StoreName,
}

/// All stores, what was found left over in those that could be opened, and those that could not.
pub type Opening = (Stores, Vec<(StoreName, Recovery)>, Vec<Closed>);

impl Stores {
    /// Opens them: the default first, without which there is nothing, then all others at the same time. One of these that cannot be
    /// opened, or does not open within a few seconds, is told of and is not available. Blocks.
    ///
    /// # Errors
    /// See [`StoresError`].
    pub fn open(settings: Vec<Settings>, default: StoreName) -> Result<Opening, StoresError> {
        if settings.is_empty() {
            return Err(StoresError::None);
        }
        if !settings.iter().any(|settings| settings.name == default) {
            return Err(StoresError::NoDefault(default));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = settings.iter().find(|settings| !names.insert(settings.name.clone())) {
            return Err(StoresError::Twice(twice.name.clone()));
        }
        let mut stores = BTreeMap::new();
        let (mut recovered, mut closed) = (Vec::new(), Vec::new());
        let (own, further): (Vec<_>, Vec<_>) = settings.into_iter().partition(|settings| settings.name == default);
        for settings in own {
            let (store, opened) = Store::attach(settings);
            recovered.push((default.clone(), opened?));
            stores.insert(default.clone(), store);
        }
        let opening: Vec<_> = further.into_iter().map(Opens::begin).collect();
        for opens in opening {
            let (store, opened) = opens.wait();
            let name = store.name().clone();
            match opened {
                Ok(recovery) => recovered.push((name.clone(), recovery)),
                Err(error) => {
                    tracing::error!(store = %name, %error, "an image store is not available");
                    let name = name.clone();
                    closed.push(Closed { name, error });
                }
            }
            stores.insert(name, store);
        }
        Ok((Self { stores, default }, recovered, closed))
    }

    /// One store.
    pub fn get(&self, name: &StoreName) -> Option<&Store> {
        self.stores.get(name)
    }

    /// The name of the default one.
    pub fn default_name(&self) -> &StoreName {
        &self.default
    }

    /// All stores, by name, whether they are available or not.
    pub fn all(&self) -> impl Iterator<Item = &Store> {
        self.stores.values()
    }

    /// Stores that have the image, the default one first. Those that are not available are passed over. Blocks, but not for long.
    pub fn with_image(&self, digest: &ImageDigest) -> Vec<Store> {
        let has =
            |store: &Store, digest: &ImageDigest| store.check_available().and_then(|()| store.get(digest).map(drop));
        let further = self.all().filter(|store| *store.name() != self.default);
        let asked: Vec<_> = further
            .map(|store| {
                let digest = digest.clone();
                (store, store.begin_asking(move |store| has(store, &digest)))
            })
            .collect();
        // Nothing works without the default one, whoever waits for it.
        let own = self.get(&self.default).filter(|store| has(store, digest).is_ok());
        let further = asked
            .into_iter()
            .filter_map(|(store, asked)| asked.wait().is_ok().then_some(store));
        own.into_iter().chain(further).cloned().collect()
    }

    /// How each store is. Walks their files: blocks, but not for long at one that does not answer.
    pub fn states(&self) -> Vec<StoreState> {
        let asked: Vec<_> = self
            .all()
            .map(|store| (store, store.begin_asking(|store| Ok(store.state()))))
            .collect();
        let states = asked.into_iter().map(|(store, asked)| {
            let found = asked.wait().unwrap_or_else(|error| store.state_of_lost(&error));
            StoreState {
                is_default: *store.name() == self.default,
                ..found
            }
        });
        states.collect()
    }

    /// Imports an image into the stores that the request names; into the default one if it names none. It is fetched once, into
    /// the first, and copied to the others. With `allow_failure` it is enough that one takes it: where the first store is at fault, the
    /// next is the first. What a client sends can be read once, so then only a store that is not available is passed over.
    ///
    /// # Errors
    /// See [`ImportError`]. Without `allow_failure`, an image that a store does not take may be in others all the same; they keep
    /// it, because somebody else may have come upon it there meanwhile. [`NotPlaced::left`] names it then: it is the caller's to
    /// remove, once nobody can want it.
    pub async fn import(
        &self,
        request: ImportRequest,
        allow_failure: bool,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Placed, NotPlaced> {
        let mut names = request.stores.clone();
        if names.is_empty() {
            names.push(self.default.clone());
        }
        let mut targets: Vec<&Store> = Vec::new();
        for name in &names {
            let store = self
                .stores
                .get(name)
                .ok_or_else(|| ImportError::NoStore(name.clone()))?;
            if !targets.iter().any(|known| known.name() == name) {
                targets.push(store);
            }
        }
        let mut failed = Vec::new();
        let first = First {
            allow_failure,
            progress,
            cancel,
        };
        let (first, imported) = first.import(request, &mut targets, &mut failed).await?;
        let digest = &imported.image.digest;
        let mut placed = vec![(first, imported.was_there)];
        for store in &targets {
            match store.copy_from(first, digest, progress, cancel).await {
                Ok(copied) => placed.push((*store, copied.was_there)),
                Err(error) if allow_failure && !matches!(error, ImportError::Cancelled) => {
                    failed.push((store.name().clone(), error));
                }
                Err(error) => {
                    let is_new = placed.iter().any(|(_, was_there)| !was_there);
                    let left = is_new.then(|| digest.clone());
                    return Err(NotPlaced { error, left });
                }
            }
        }
        let stores = placed.iter().map(|(store, _)| store.name().clone()).collect();
        Ok(Placed {
            imported,
            stores,
            failed,
        })
    }

    /// Copies an image from one store to another.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn copy(
        &self,
        digest: &ImageDigest,
        from: &StoreName,
        to: &StoreName,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Imported, ImportError> {
        let find = |name: &StoreName| self.stores.get(name).ok_or_else(|| ImportError::NoStore(name.clone()));
        find(to)?.copy_from(find(from)?, digest, progress, cancel).await
    }

    /// Removes an image from one store. Blocks.
    ///
    /// # Errors
    /// There is no such store or image, or its files cannot be removed.
    pub fn remove_from(&self, digest: &ImageDigest, name: &StoreName) -> Result<(), ImportError> {
        let store = self
            .stores
            .get(name)
            .ok_or_else(|| ImportError::NoStore(name.clone()))?;
        Ok(store.remove(digest)?)
    }
}

/// How the first of several stores gets an image.
struct First<'a> {
    allow_failure: bool,
    progress: &'a watch::Sender<Progress>,
    cancel: &'a CancellationToken,
}

impl First<'_> {
    /// Imports into the first of `targets` that takes it, which are those behind it afterwards.
    async fn import<'s>(
        &self,
        request: ImportRequest,
        targets: &mut Vec<&'s Store>,
        failed: &mut Vec<(StoreName, ImportError)>,
    ) -> Result<(&'s Store, Imported), ImportError> {
        let mut request = Some(request);
        loop {
            let Some(now) = request.take() else {
                return Err(ImportError::Cancelled);
            };
            let first = targets.remove(0);
            let may_fail = self.allow_failure && !targets.is_empty();
            if may_fail && let Err(error) = first.ask(Store::check_available).await {
                failed.push((first.name().clone(), error.into()));
                request = Some(now);
                continue;
            }
            request = now.again();
            match first.import(now, self.progress, self.cancel).await {
                Ok(imported) => return Ok((first, imported)),
                Err(error) if may_fail && request.is_some() && error.is_of_store() => {
                    failed.push((first.name().clone(), error));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Store {
    /// How it is; whether it is the default one is for others to say.
    fn state(&self) -> StoreState {
        let usage = match self.check_available().and_then(|()| self.usage()) {
            Ok(usage) => usage,
            Err(error) => return self.state_of_lost(&error),
        };
        let read_only = self.check_writable().err().map(|error| error.to_string());
        let health = match &read_only {
            Some(_) => StoreHealth::ReadOnly,
            None => StoreHealth::Ready,
        };
        StoreState {
            name: self.name().clone(),
            is_default: false,
            usage: Some(usage),
            quota_bytes: self.settings().quota_bytes,
            health,
            problem: read_only,
            shares_root: Some(self.shares_root()),
            images: Some(self.count()),
        }
    }

    /// How one is that is not available for this reason.
    fn state_of_lost(&self, error: &StoreError) -> StoreState {
        StoreState {
            name: self.name().clone(),
            is_default: false,
            usage: None,
            quota_bytes: self.settings().quota_bytes,
            health: StoreHealth::Unavailable,
            problem: Some(error.to_string()),
            shares_root: None,
            images: None,
        }
    }

    /// Whether it is on the file system of `/`; false where that can not be told.
    fn shares_root(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &std::path::Path| path.metadata().map(|metadata| metadata.dev());
        let both = (device(&self.settings().root), device(std::path::Path::new("/")));
        matches!(both, (Ok(here), Ok(root)) if here == root)
    }

    /// How many images are in it, damaged ones too.
    fn count(&self) -> u64 {
        crate::store::children(&self.images()).map_or(0, |images| images.len() as u64)
    }

    /// Copies an image of another store into this one.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn copy_from(
        &self,
        from: &Self,
        digest: &ImageDigest,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Imported, ImportError> {
        let request = ImportRequest {
            source: ImportSource::Stored {
                digest: digest.clone(),
                store: from.clone(),
            },
            expected: image_formats::Expectations::up_to(u64::MAX),
            evidence: RequestedProof::default(),
            trust: std::sync::Arc::default(),
            stores: Vec::new(),
        };
        self.import(request, progress, cancel).await
    }
}
