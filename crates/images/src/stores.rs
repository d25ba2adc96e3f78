//! Several stores under one roof: directories, mostly on file systems of their own.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    ImageDigest, ImportError, ImportRequest, ImportSource, Imported, OpenError, Progress, Recovery, RequestedProof,
    Settings, Store, StoreName, Usage,
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
    /// Opens them. One that cannot be opened is told of and is not available, except the default, without which there is nothing.
    /// Blocks.
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
        let mut stores = BTreeMap::new();
        let (mut recovered, mut closed) = (Vec::new(), Vec::new());
        for settings in settings {
            let name = settings.name.clone();
            if stores.contains_key(&name) {
                return Err(StoresError::Twice(name));
            }
            let (store, opened) = Store::attach(settings);
            stores.insert(name.clone(), store);
            match opened {
                Ok(recovery) => recovered.push((name, recovery)),
                Err(error) if name == default => return Err(error.into()),
                Err(error) => {
                    tracing::error!(store = %name, %error, "an image store is not available");
                    closed.push(Closed { name, error });
                }
            }
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

    /// Stores that have the image, the default one first. Those that are not available are passed over.
    pub fn with_image(&self, digest: &ImageDigest) -> Vec<Store> {
        let mut found: Vec<Store> = self
            .all()
            .filter(|store| store.check_available().is_ok() && store.get(digest).is_ok())
            .cloned()
            .collect();
        found.sort_by_key(|store| *store.name() != self.default);
        found
    }

    /// How each store is. Walks their files: blocks.
    pub fn states(&self) -> Vec<StoreState> {
        let state = |store: &Store| {
            let usage = store.check_available().and_then(|()| store.usage());
            let problem = usage.as_ref().err().map(ToString::to_string);
            let read_only = store.check_writable().err().map(|error| error.to_string());
            let health = match (&problem, &read_only) {
                (Some(_), _) => StoreHealth::Unavailable,
                (None, Some(_)) => StoreHealth::ReadOnly,
                (None, None) => StoreHealth::Ready,
            };
            let is_there = problem.is_none();
            StoreState {
                name: store.name().clone(),
                is_default: *store.name() == self.default,
                usage: usage.ok(),
                quota_bytes: store.settings().quota_bytes,
                health,
                problem: problem.or(read_only),
                shares_root: is_there.then(|| store.shares_root()),
                images: is_there.then(|| store.count()),
            }
        };
        self.all().map(state).collect()
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
            if may_fail && let Err(error) = first.check_available() {
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
