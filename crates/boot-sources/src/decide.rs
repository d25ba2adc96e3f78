//! What to do next, and what an answer means. Nothing here reads a clock: the time comes in.

use jiff::{SignedDuration, Timestamp};

use crate::definition::{BootSource, Origin};
use crate::state::{Import, LastError, Place, Refusal, SourceDigest, SourceState};

/// First wait after a failure, seconds.
pub const BACKOFF_FIRST_S: i64 = 60;
/// Longest wait after a failure, seconds: an hour.
pub const BACKOFF_MAX_S: i64 = 3600;

/// What holds for all sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Whether the sources that are shipped are polled. Custom ones do not mind.
    pub system_sources: bool,
    /// Whether there is a store that imports can go to: the source's own, or a default one.
    pub has_store: bool,
}

impl Gate {
    /// Everything is as it should be.
    pub const OPEN: Self = Self {
        system_sources: true,
        has_store: true,
    };

    /// Whether `source` is polled at all.
    pub fn lets(self, source: &BootSource) -> bool {
        source.enabled && (self.system_sources || source.origin == Origin::Custom)
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing until somebody switches the source on.
    Off,
    /// Nothing until there is a store.
    NoStore,
    /// Import this; if nobody does so at the moment, a daemon ended while doing it.
    Import(SourceDigest),
    /// Ask the source for its digest now.
    Poll,
    /// Nothing until then.
    Wait(Timestamp),
    /// Nothing: the schedule has no slot left before the year 9999.
    Never,
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is the current import.
    Unchanged,
    /// It was imported before, or the store has it from elsewhere; the alias leads to it again, and nothing is fetched.
    AlreadyThere(Import),
    /// It was refused before for what it is, and is not fetched again; [`SourceState::sync`] would.
    Refused(SourceDigest),
    /// It is new: import it.
    Import(SourceDigest),
}

/// How an import failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Another try may do better: a server that is down, a disk that is full.
    Transient,
    /// The image itself is at fault: a wrong signature, a format that is refused, too large.
    Refused,
}

/// How long nothing is tried after so many failures in a row.
pub fn backoff(failures: u32) -> SignedDuration {
    let doublings = failures.saturating_sub(1).min(10);
    SignedDuration::from_secs((BACKOFF_FIRST_S << doublings).min(BACKOFF_MAX_S))
}

impl SourceState {
    /// What to do next. Called whenever something changed and when a wait is over, never more than one poll or import of a
    /// source at a time.
    ///
    /// A clock that went backwards leaves times in the state that are yet to come; they are taken for now, once, so that a
    /// source is not silent until the clock has caught up. Store the state if this changed it.
    pub fn step(&mut self, source: &BootSource, gate: Gate, now: Timestamp) -> Step {
        self.no_later_than(now);
        if !gate.lets(source) {
            return Step::Off;
        }
        if !gate.has_store {
            return Step::NoStore;
        }
        if let Some(digest) = &self.importing {
            return Step::Import(digest.clone());
        }
        let Some(last) = self
            .last_attempt
            .filter(|_| !self.sync && self.source.as_ref() == Some(&source.source))
        else {
            return Step::Poll;
        };
        let place = source.place();
        if self.failures == 0 && self.current().is_some_and(|current| !current.is_of(&place)) {
            // The store is another one; it is imported anew.
            return Step::Poll;
        }
        let due = if self.failures > 0 && !self.is_refusal() {
            last.checked_add(backoff(self.failures)).ok()
        } else {
            source.poll_times().next_after(last)
        };
        match due {
            Some(due) if due <= now => Step::Poll,
            Some(due) => Step::Wait(due),
            None => Step::Never,
        }
    }

    fn no_later_than(&mut self, now: Timestamp) {
        for time in [&mut self.last_attempt, &mut self.last_success].into_iter().flatten() {
            *time = (*time).min(now);
        }
    }

    /// An operator wants a poll now, and what was refused tried again.
    pub fn sync(&mut self) {
        self.sync = true;
        self.refused = None;
    }

    /// The source answered with `digest`. `stored` is the image the store already has of it, from wherever.
    pub fn polled(
        &mut self,
        source: &BootSource,
        digest: SourceDigest,
        stored: Option<&str>,
        now: Timestamp,
    ) -> Finding {
        if self.source.as_ref() != Some(&source.source) {
            self.refused = None;
            self.source = Some(source.source.clone());
        }
        self.sync = false;
        self.last_attempt = Some(now);
        self.last_success = Some(now);
        self.seen = Some(digest.clone());
        if let Some(refusal) = self.refused.as_ref().filter(|refusal| refusal.digest == digest) {
            self.failures = 1;
            self.last_error = Some(refusal.error.clone());
            return Finding::Refused(digest);
        }
        self.refused = None;
        self.failures = 0;
        self.last_error = None;
        let place = source.place();
        let is_it = |import: &Import| import.digest == digest && import.is_of(&place);
        if self.current().is_some_and(is_it) {
            return Finding::Unchanged;
        }
        let before = self.imports.iter().find(|import| is_it(import));
        if let Some(image) = before.map(|import| import.image.clone()).or(stored.map(str::to_owned)) {
            return Finding::AlreadyThere(self.make_current(digest, image, place, now));
        }
        self.importing = Some(digest.clone());
        Finding::Import(digest)
    }

    /// The source did not answer.
    pub fn poll_failed(&mut self, source: &BootSource, (code, message): (&str, &str), now: Timestamp) {
        self.source = Some(source.source.clone());
        self.sync = false;
        self.failed(LastError::new(code, message, now, false));
    }

    /// Whether what went wrong last is that an image was refused: then trying again soon would change nothing.
    pub(crate) fn is_refusal(&self) -> bool {
        self.refused.is_some() && self.last_error.as_ref().is_some_and(|error| error.importing)
    }

    fn failed(&mut self, error: LastError) {
        self.last_attempt = Some(error.at);
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(error);
    }

    /// The import is done, and the store calls the image `image`; `digest` is what was really fetched, from and to `place`. Now see what
    /// is to be removed.
    pub fn imported(&mut self, digest: SourceDigest, image: String, place: Place, now: Timestamp) -> Import {
        self.importing = None;
        self.refused = None;
        self.seen = Some(digest.clone());
        self.failures = 0;
        self.last_error = None;
        self.last_attempt = Some(now);
        self.make_current(digest, image, place, now)
    }

    /// The import ended without an image.
    pub fn import_failed(&mut self, kind: FailureKind, (code, message): (&str, &str), now: Timestamp) {
        let error = LastError::new(code, message, now, true);
        let digest = self.importing.take().filter(|_| kind == FailureKind::Refused);
        self.refused = digest.map(|digest| Refusal {
            digest,
            error: error.clone(),
        });
        self.failed(error);
    }

    /// The import was called off; nothing is held against anybody, and the next step polls.
    pub fn import_cancelled(&mut self) {
        self.importing = None;
        self.last_attempt = None;
    }

    /// An image is gone from the store, removed or lost. If it was the newest one, the next step polls.
    pub fn forget(&mut self, image: &str) {
        if self.current().is_some_and(|current| current.image == image) {
            self.last_attempt = None;
        }
        self.imports.retain(|import| import.image != image);
    }

    fn make_current(&mut self, digest: SourceDigest, image: String, place: Place, at: Timestamp) -> Import {
        let is_it = |import: &Import| import.digest == digest && import.is_of(&place);
        self.imports.retain(|import| !is_it(import) && import.image != image);
        let Place { from, store } = place;
        let import = Import {
            digest,
            image,
            at,
            from: Some(from),
            store,
        };
        self.imports.insert(0, import.clone());
        import
    }
}
