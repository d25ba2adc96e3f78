//! What ties a store to its file system: a lost mount is noticed, nothing is written to the directory beneath, and the store comes
//! back when its mount does.
//!
//! ```text
//!             hold(): what is there is the store that was there before
//!        ┌───────────────────────────────────────────────────────────┐
//!        ▼                                                           │
//!      held ── tend(): the root shows another directory, or none ──► lost
//! ```
//!
//! While a store is held its root and its lock file are open. A mount that went shows another file under the lock file's name. What
//! was lost is let go of, so that its file system can be unmounted in full, and is held again once the directory has the identity
//! that was remembered: the mount that is back, and not what is beneath it. A store whose identity nobody remembers is held all the
//! time, and is back when the same files are.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, StatVfsMountFlags};
use rustix::io::Errno;

use crate::{OpenError, Recovery, Settings, Store, StoreError, durable};

/// Name of the file whose lock keeps others out.
const LOCK: &str = "images.lock";
/// How long the one before may need to be gone.
const LOCK_WAIT: Duration = Duration::from_millis(500);
/// Name of the file that has the identity of a store.
const IDENTITY: &str = "store.id";
/// Longest identity that is read, bytes: a UUID, and room for what an editor adds.
const IDENTITY_MAX: u64 = 64;
/// Where the kernel makes identities: a random UUID for each read (random(4)).
const UUID_SOURCE: &str = "/proc/sys/kernel/random/uuid";

/// The tie of one store.
#[derive(Debug)]
pub(crate) struct Anchor {
    state: Mutex<State>,
    /// Whether its file system does not answer: then nobody is to wait for it.
    silent: AtomicBool,
    /// Whether the last look missed a store that is not let go of.
    missed: AtomicBool,
    /// Held by who opens the store or looks after it. Has what was found left over in one that opened, until somebody is told.
    late: Mutex<Option<Recovery>>,
}

#[derive(Debug)]
enum State {
    Held(Held),
    /// With the reason.
    Lost(String),
}

/// A root that is there.
#[derive(Debug)]
struct Held {
    /// Held for the lock on it, and to tell whether the root is still the one that was opened.
    lock: File,
    /// The directory itself, whatever is mounted on its path by now.
    root: File,
}

/// What a look at a store found.
#[derive(Debug)]
pub enum Tended {
    /// It is as it was at the last look.
    AsBefore,
    /// It was there, and is not any more; why.
    Lost(String),
    /// It was not there, and is again; what was found left over in it.
    Back(Recovery),
}

impl Anchor {
    /// Of a store that is not there; why.
    fn lost(problem: String) -> Self {
        Self {
            state: Mutex::new(State::Lost(problem)),
            silent: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            late: Mutex::default(),
        }
    }

    fn late(&self) -> MutexGuard<'_, Option<Recovery>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn take(settings: &Settings) -> Result<Self, OpenError> {
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| OpenError::Io { action, path, source }
        };
        let path = &settings.root;
        let known = settings.remembered.as_deref().map(remembered).transpose()?.flatten();
        if settings.must_be_mounted && !is_mount_point(path).map_err(io("inspect", path))? {
            return Err(OpenError::NotMounted(path.clone()));
        }
        if known.is_none() {
            std::fs::create_dir_all(path).map_err(io("create", path))?;
        }
        let root = File::open(path).map_err(io("open", path))?;
        // From here on everything goes by the open directory: what its path shows may change.
        let inside = within(&root);
        if settings.must_be_mounted && !is_other_device(&root, path).map_err(io("inspect", path))? {
            return Err(OpenError::NotMounted(path.clone()));
        }
        let found = identity(&inside.join(IDENTITY)).map_err(io("read", &path.join(IDENTITY)))?;
        if let (Some(known), Some(remembered)) = (&known, &settings.remembered)
            && found.as_ref() != Some(known)
        {
            return Err(OpenError::Stranger {
                root: path.clone(),
                remembered: remembered.clone(),
            });
        }
        for part in ["images", "images/sha256", "blobs", "partial", "tmp"] {
            let (there, shown) = (inside.join(part), path.join(part));
            std::fs::create_dir_all(&there).map_err(io("create", &shown))?;
            // Sealed files may be read by all, and who can read a file can lock it.
            std::fs::set_permissions(&there, Permissions::from_mode(0o700)).map_err(io("restrict", &shown))?;
        }
        let shown = path.join(LOCK);
        let lock = open_lock(&inside.join(LOCK)).map_err(io("open", &shown))?;
        lock.set_permissions(Permissions::from_mode(0o600))
            .map_err(io("restrict", &shown))?;
        take_lock(&lock).map_err(|errno| match errno {
            Errno::WOULDBLOCK => OpenError::InUse(path.clone()),
            errno => io("lock", &shown)(errno.into()),
        })?;
        if let (None, Some(remembered)) = (known, &settings.remembered) {
            remember(&inside, remembered, found).map_err(io("note the identity in", path))?;
        }
        Ok(Self { lock, root })
    }

    /// What is wrong with it, if its path shows something else by now.
    fn problem(&self, root: &Path) -> Option<String> {
        let path = root.join(LOCK);
        let there = match path.metadata() {
            Ok(there) => there,
            Err(error) => return Some(format!("{} cannot be reached: {error}", path.display())),
        };
        let held = match self.lock.metadata() {
            Ok(held) => held,
            Err(error) => return Some(format!("its lock file cannot be read: {error}")),
        };
        let is_same = (there.dev(), there.ino()) == (held.dev(), held.ino());
        let text = || format!("{} is not what it was when the store was opened", root.display());
        (!is_same).then(text)
    }
}

impl Store {
    /// The store of these settings, whether it is there or not; and what was found left over in it, or why it is not there.
    /// [`Store::tend`] opens it once it is. Blocks, for as long as the file system does.
    pub fn attach(settings: Settings) -> (Self, Result<Recovery, OpenError>) {
        let store = Self::closed(settings);
        let opened = store.open_late();
        let recovery = opened.map(|()| store.take_late().unwrap_or_default());
        (store, recovery)
    }

    /// The store of these settings, which nobody has opened yet.
    pub(crate) fn closed(settings: Settings) -> Self {
        Self::new(settings, Anchor::lost("it was not opened yet".to_owned()))
    }

    /// Opens it; what was found left over is for who asks next.
    pub(crate) fn open_late(&self) -> Result<(), OpenError> {
        let mut late = self.0.anchor.late();
        if matches!(*self.0.anchor.state(), State::Held(_)) {
            // Who looks after it was quicker.
            return Ok(());
        }
        match self.hold() {
            Ok(recovery) => {
                *late = Some(recovery);
                Ok(())
            }
            Err(error) => {
                *self.0.anchor.state() = State::Lost(chain(&error));
                Err(error)
            }
        }
    }

    /// What was found left over when it opened, if nobody was told yet.
    pub(crate) fn take_late(&self) -> Option<Recovery> {
        self.0.anchor.late().take()
    }

    /// Takes hold of the root, and clears what a crash left behind.
    fn hold(&self) -> Result<Recovery, OpenError> {
        let held = Held::take(self.settings())?;
        // Nothing is sealed meanwhile by those who began before the store was lost: what they have made goes.
        let _nobody_seals = self.0.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let recovered = self.recover().map_err(|source| OpenError::Io {
            action: "clean",
            path: self.settings().root.clone(),
            source,
        });
        let recovery = recovered?;
        *self.0.anchor.state() = State::Held(held);
        Ok(recovery)
    }

    /// Looks whether the store is still there, and opens it again if it was lost and is back. To be called now and then. Blocks,
    /// for as long as the file system does; that it does not answer is over then.
    pub fn tend(&self) -> Tended {
        // One that is still being opened is waited for.
        let mut late = self.0.anchor.late();
        let tended = match late.take() {
            Some(recovery) => Tended::Back(recovery),
            None => self.look(),
        };
        self.set_silent(false);
        tended
    }

    fn look(&self) -> Tended {
        let lost = {
            let mut state = self.0.anchor.state();
            match &*state {
                State::Held(held) => {
                    let problem = held.problem(&self.settings().root);
                    let missed = self.0.anchor.missed.swap(problem.is_some(), Ordering::Relaxed);
                    return match problem {
                        Some(problem) if self.settings().remembered.is_some() => {
                            *state = State::Lost(problem.clone());
                            Tended::Lost(problem)
                        }
                        Some(problem) if !missed => Tended::Lost(problem),
                        None if missed => Tended::Back(Recovery::default()),
                        _ => Tended::AsBefore,
                    };
                }
                State::Lost(problem) => problem.clone(),
            }
        };
        match self.hold() {
            Ok(recovery) => {
                self.0.anchor.missed.store(false, Ordering::Relaxed);
                Tended::Back(recovery)
            }
            Err(error) => {
                let problem = chain(&error);
                if problem != lost {
                    tracing::warn!(store = %self.name(), problem, "an image store is not available");
                    *self.0.anchor.state() = State::Lost(problem);
                }
                Tended::AsBefore
            }
        }
    }

    /// From now on nobody waits for the store's file system, which does not answer; or everybody may again.
    pub fn set_silent(&self, is_silent: bool) {
        self.0.anchor.silent.store(is_silent, Ordering::Relaxed);
    }

    /// Whether nobody is to wait for its file system.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.anchor.silent.load(Ordering::Relaxed)
    }

    /// That nobody waits for it any longer.
    pub(crate) fn does_not_answer(&self) -> StoreError {
        self.unavailable("its file system does not answer".to_owned())
    }

    /// Whether its file system is still the one that was opened: a lost mount shows the directory beneath, which must not be
    /// written to. Blocks, for as long as the file system does: see [`Store::ask`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn check_available(&self) -> Result<(), StoreError> {
        if self.is_silent() {
            return Err(self.does_not_answer());
        }
        let problem = match &*self.0.anchor.state() {
            State::Held(held) => held.problem(&self.settings().root),
            State::Lost(problem) => Some(problem.clone()),
        };
        problem.map_or(Ok(()), |problem| Err(self.unavailable(problem)))
    }

    /// Whether it is available and its file system can be written to. Blocks as [`Store::check_available`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.check_available()?;
        let status = match &*self.0.anchor.state() {
            State::Held(held) => rustix::fs::fstatvfs(&held.root),
            State::Lost(problem) => return Err(self.unavailable(problem.clone())),
        };
        match status {
            Ok(status) if status.f_flag.contains(StatVfsMountFlags::RDONLY) => {
                Err(self.unavailable("its file system can only be read".to_owned()))
            }
            Ok(_) => Ok(()),
            Err(errno) => Err(self.unavailable(format!("its file system cannot be asked: {errno}"))),
        }
    }

    /// Whether its files can share blocks (`FICLONE`), as far as trying tells; none where it can not be tried, as on a full disk.
    /// Blocks shortly.
    pub fn can_reflink(&self) -> Option<bool> {
        let root = match &*self.0.anchor.state() {
            State::Held(held) => held.root.try_clone().ok()?,
            State::Lost(_) => return None,
        };
        let names = [".reflink-from", ".reflink-to"].map(|name| within(&root).join(name));
        let [from, to] = &names;
        let tried = || -> io::Result<rustix::io::Result<()>> {
            std::fs::write(from, [1; 4096])?;
            let target = File::create(to)?;
            Ok(rustix::fs::ioctl_ficlone(&target, &File::open(from)?))
        };
        let can = match tried() {
            Ok(Ok(())) => Some(true),
            // What file systems say that have no shared blocks (ioctl_ficlone(2)).
            Ok(Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS)) => Some(false),
            Ok(Err(_)) | Err(_) => None,
        };
        for path in &names {
            let _ = std::fs::remove_file(path); // One that could not be made is not there.
        }
        can
    }

    /// Makes a directory in the store, and in nothing else that its path may show by now.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        let inside = path.strip_prefix(&self.settings().root).map_err(io::Error::other)?;
        let root = match &*self.0.anchor.state() {
            State::Held(held) => held.root.try_clone()?,
            State::Lost(problem) => return Err(io::Error::new(io::ErrorKind::NotConnected, problem.clone())),
        };
        Ok(rustix::fs::mkdirat(&root, inside, Mode::from_raw_mode(0o777))?)
    }

    fn unavailable(&self, problem: String) -> StoreError {
        StoreError::Unavailable {
            store: self.name().clone(),
            problem,
        }
    }
}

/// A path to what is in an open directory, wherever that is mounted.
fn within(root: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()))
}

/// The identity that was remembered of a store; none for one that was never open.
fn remembered(path: &Path) -> Result<Option<String>, OpenError> {
    identity(path).map_err(|source| OpenError::Io {
        action: "read",
        path: path.to_path_buf(),
        source,
    })
}

fn identity(path: &Path) -> io::Result<Option<String>> {
    use std::io::Read;
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(IDENTITY_MAX).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = text.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// Gives a store its identity, unless it has one, and then remembers that. In this order: what is remembered is there.
fn remember(inside: &Path, remembered: &Path, found: Option<String>) -> io::Result<()> {
    let identity = match found {
        Some(identity) => identity,
        None => {
            let made = std::fs::read_to_string(UUID_SOURCE)?.trim().to_owned();
            note(&inside.join(IDENTITY), &made)?;
            made
        }
    };
    note(remembered, &identity)
}

/// Writes a line, durable and at once.
fn note(path: &Path, line: &str) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, format!("{line}\n"))?;
    File::open(&fresh)?.sync_all()?;
    std::fs::rename(&fresh, path)?;
    durable::sync_dir(parent)
}

/// Opens the file to be locked, which is made where there is none. For reading: what is open for writing keeps a file system from
/// being mounted read-only.
fn open_lock(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let made = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    made?;
    File::open(path)
}

/// Takes the lock. One who was killed while it started a program may still have it for a moment, in the half-made copy of itself
/// that the kernel is about to end.
fn take_lock(lock: &File) -> rustix::io::Result<()> {
    let began = std::time::Instant::now();
    loop {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if began.elapsed() < LOCK_WAIT => std::thread::sleep(LOCK_WAIT / 20),
            result => return result,
        }
    }
}

/// Whether `path` is where a file system is mounted: it lies on another one than the directory above it.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(root) => is_other_device(&root, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_other_device(root: &File, path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(root.metadata()?.dev() != parent.metadata()?.dev())
}

/// The text of an error and of everything below it, outermost first.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(": ");
        text.push_str(&source.to_string());
        below = source.source();
    }
    text
}
