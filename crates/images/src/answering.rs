//! Stores whose file system may not answer, as one on a network does while its server is away: they are opened and asked on threads of
//! their own, and nobody waits for these beyond a limit.
//!
//! Such a thread can not be ended. It is left to itself, and what it was at is as if it had been done a little later: what is asked
//! here changes nothing, and a store that opens late is told of by [`Store::tend`].

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::{OpenError, Recovery, Settings, Store, StoreError};

/// How long a store may take to open before the others go on without it: beyond what the recovery of one on a busy disk takes, and far
/// below what starts of daemons are given.
const OPENED_WITHIN: Duration = Duration::from_secs(5);

impl Store {
    /// What `work`, which only looks, finds in the store.
    ///
    /// # Errors
    /// Those of `work`, and [`StoreError::Unavailable`] where that takes longer than [`Settings::answer_within`].
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (tell, told) = oneshot::channel();
        self.spawn(work, move |found| drop(tell.send(found)))?;
        match tokio::time::timeout(self.settings().answer_within, told).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Err(self.does_not_answer()),
        }
    }

    /// The same for those who may block.
    ///
    /// # Errors
    /// As of [`Self::ask`].
    pub fn ask_now<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begin_asking(work).wait()
    }

    /// Begins to ask: several stores can be asked at the same time so.
    pub(crate) fn begin_asking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Asked<T> {
        let (tell, told) = mpsc::channel();
        let spawned = self.spawn(work, move |found| drop(tell.send(found)));
        Asked {
            store: self.clone(),
            told: spawned.map(|()| told),
            until: Instant::now() + self.settings().answer_within,
        }
    }

    fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
        tell: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        if self.is_silent() {
            // One thread more would wait for it.
            return Err(self.does_not_answer());
        }
        let store = self.clone();
        let thread = std::thread::Builder::new().name("store".to_owned());
        let spawned = thread.spawn(move || tell(work(&store)));
        spawned.map(drop).map_err(StoreError::io("ask", &self.settings().root))
    }
}

/// A store that was asked something.
pub(crate) struct Asked<T> {
    store: Store,
    told: Result<mpsc::Receiver<Result<T, StoreError>>, StoreError>,
    until: Instant,
}

impl<T> Asked<T> {
    /// What it says. Blocks, until the store's limit is over.
    pub(crate) fn wait(self) -> Result<T, StoreError> {
        let left = self.until.saturating_duration_since(Instant::now());
        match self.told?.recv_timeout(left) {
            Ok(found) => found,
            Err(_) => Err(self.store.does_not_answer()),
        }
    }
}

/// A store that is being opened.
pub(crate) struct Opens {
    store: Store,
    opened: mpsc::Receiver<Result<(), OpenError>>,
    until: Instant,
}

impl Opens {
    /// Begins to open the store of these settings.
    pub(crate) fn begin(settings: Settings) -> Self {
        let store = Store::closed(settings);
        let (tell, opened) = mpsc::channel();
        let opening = store.clone();
        let thread = std::thread::Builder::new().name("store".to_owned());
        // Where there is no thread for it, the receiver tells at once.
        let spawned = thread.spawn(move || drop(tell.send(opening.open_late())));
        if let Err(error) = spawned {
            tracing::error!(store = %store.name(), %error, "there is no thread to open an image store");
        }
        let until = Instant::now() + OPENED_WITHIN;
        Self { store, opened, until }
    }

    /// The store, and how its opening went. Blocks, but not for long.
    pub(crate) fn wait(self) -> (Store, Result<Recovery, OpenError>) {
        let left = self.until.saturating_duration_since(Instant::now());
        let opened = match self.opened.recv_timeout(left) {
            Ok(opened) => opened.map(|()| self.store.take_late().unwrap_or_default()),
            Err(_) => {
                self.store.set_silent(true);
                Err(OpenError::Silent {
                    root: self.store.settings().root.clone(),
                    seconds: OPENED_WITHIN.as_secs(),
                })
            }
        };
        (self.store, opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stores;

    fn settings(root: std::path::PathBuf, name: &str) -> Settings {
        Settings {
            name: name.parse().unwrap(),
            root,
            answer_within: Duration::from_millis(100),
            ..Settings::default()
        }
    }

    fn problem(error: &StoreError) -> String {
        assert_eq!(error.code(), "store_unavailable", "{error}");
        error.to_string()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_asks_a_store_that_does_not_answer_is_told_so_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(settings(dir.path().to_owned(), "default")).unwrap();
        assert_eq!(store.ask(|_| Ok(7)).await.unwrap(), 7);
        let (hang, hung) = mpsc::channel::<()>();
        let asked = store.ask(move |_| Ok(hung.recv()));
        // Others go on meanwhile, on the same thread.
        let (asked, ()) = tokio::join!(asked, tokio::task::yield_now());
        assert!(problem(&asked.unwrap_err()).contains("does not answer"));
        drop(hang);
        // As somebody who looks after it does: from then on nobody tries.
        store.set_silent(true);
        assert!(problem(&store.ask_now(|_| Ok(())).unwrap_err()).contains("does not answer"));
        store.tend();
        store.ask_now(Store::check_available).unwrap();
    }

    /// Opening the identity blocks until somebody writes it, as on a file system whose server is away.
    #[test]
    fn a_store_that_does_not_open_keeps_nobody_and_is_there_when_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let (far, remembered) = (dir.path().join("far"), dir.path().join("far.id"));
        std::fs::create_dir_all(far.join("tmp/left")).unwrap();
        std::fs::write(&remembered, "known\n").unwrap();
        let identity = far.join("store.id");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &identity,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let own = settings(dir.path().join("own"), "default");
        let further = Settings {
            remembered: Some(remembered),
            ..settings(far, "far")
        };
        let began = Instant::now();
        let (stores, recovered, closed) = Stores::open(vec![further, own.clone()], own.name.clone()).unwrap();
        assert!(began.elapsed() < OPENED_WITHIN * 3);
        assert_eq!(recovered.len(), 1);
        assert!(matches!(closed[0].error, OpenError::Silent { .. }), "{closed:?}");
        let far = stores.get(&"far".parse().unwrap()).unwrap();
        assert!(problem(&far.check_available().unwrap_err()).contains("does not answer"));
        std::fs::write(&identity, "known\n").unwrap();
        let found = far.tend();
        assert!(
            matches!(&found, crate::Tended::Back(recovery) if recovery.removed == 1),
            "{found:?}"
        );
        far.check_available().unwrap();
        assert!(matches!(far.tend(), crate::Tended::AsBefore));
    }
}
