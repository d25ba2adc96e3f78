//! Why bytes do not come.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::chain::{Cause, find};
use crate::policy::Refusal;
use crate::tls_fault::TlsFault;

/// Why a source cannot be read. URLs in it are without user names, passwords and queries, which may hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Text that names no source.
    #[error("{text:?} names no source: {problem}")]
    Location {
        /// As given, unless it holds a password.
        text: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The address policy says no.
    #[error("refused to fetch {url}")]
    Refused {
        /// The URL, or the one a redirect led to.
        url: String,
        /// Which rule.
        #[source]
        refusal: Refusal,
    },
    /// A redirect that cannot be followed, or one too many.
    #[error("{url} redirects {problem}")]
    Redirect {
        /// The URL that answered.
        url: String,
        /// "without …", "to …".
        problem: String,
    },
    /// No address for the host's name.
    #[error("cannot find the address of the host of {url}; check its spelling and this host's name service")]
    Unresolved {
        /// The URL.
        url: String,
        /// What the name service said.
        #[source]
        source: Cause,
    },
    /// No connection, or one that ended before an answer.
    #[error("no answer from {url}; check that the server runs and is reachable from this host")]
    Unreachable {
        /// The URL.
        url: String,
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// The server took too long to answer, or sends too slowly.
    #[error("{url} is too slow: {problem}")]
    TooSlow {
        /// The URL.
        url: String,
        /// Which limit it did not keep.
        problem: String,
    },
    /// TLS failed.
    #[error("no trusted connection to {url}: {fault}")]
    Tls {
        /// The URL.
        url: String,
        /// What is wrong, as far as it is known.
        fault: TlsFault,
        /// What the TLS library said.
        #[source]
        source: Cause,
    },
    /// A bundle of certificate authorities that is none, or a host that has none.
    #[error("cannot trust any server: {problem}")]
    Trust {
        /// What is missing and where it belongs.
        problem: String,
        /// What the TLS library said.
        #[source]
        source: Option<Cause>,
    },
    /// Credentials are missing, wrong, or not enough.
    #[error("expected status code 200 from {url}, got {status}{}: it refuses access; check the source's credentials", Detail(.detail))]
    Unauthorized {
        /// The URL.
        url: String,
        /// 401 or 403.
        status: u16,
        /// What the server says about it, of S3 servers.
        detail: Option<String>,
    },
    /// There is nothing there.
    #[error("expected status code 200 from {url}, got {status}{}: it does not exist; check the spelling", Detail(.detail))]
    NotFound {
        /// The URL.
        url: String,
        /// 404 or 410.
        status: u16,
        /// What the server says about it, of S3 servers.
        detail: Option<String>,
    },
    /// Any other answer that is no content.
    #[error("expected status code 200 from {url}, got {status}{}{}", Detail(.detail), Later(.retry_after))]
    Status {
        /// The URL.
        url: String,
        /// HTTP status.
        status: u16,
        /// What the server says about it, of S3 servers.
        detail: Option<String>,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// An answer that contradicts itself or the protocol.
    #[error("{url} answers wrongly: {problem}")]
    Answer {
        /// The URL.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The connection broke within the body.
    #[error("{url} broke off at byte {offset}")]
    BrokeOff {
        /// The URL.
        url: String,
        /// Bytes of the object received until then, from its beginning.
        offset: u64,
        /// What the connection said; none if the body ended early without an error.
        #[source]
        source: Option<Cause>,
    },
    /// The object is not the one that was begun, or not the one expected.
    #[error("{subject} has changed: {difference}; fetch it anew from its beginning")]
    Changed {
        /// URL or path.
        subject: String,
        /// What differs.
        difference: String,
    },
    /// The object is longer or shorter than stated or expected.
    #[error("{subject} should have {expected_bytes} bytes but has {found}; the server or the expectation is wrong")]
    WrongLength {
        /// URL or path.
        subject: String,
        /// Bytes stated before, or demanded by the caller.
        expected_bytes: u64,
        /// What came: "12", "more".
        found: String,
    },
    /// There is no safe way to go on in the middle.
    #[error("{url} cannot be continued at byte {offset}: {problem}; fetch it anew from its beginning")]
    NotResumable {
        /// The URL.
        url: String,
        /// Where it should have gone on.
        offset: u64,
        /// What the server lacks.
        problem: &'static str,
    },
    /// All tries failed; the last one's reason is the source.
    #[error("gave up on {url} at byte {offset} after {tries} tries")]
    GaveUp {
        /// The URL.
        url: String,
        /// Bytes of the object received until then, from its beginning.
        offset: u64,
        /// Tries in a row that failed.
        tries: u32,
        /// Why the last one failed.
        #[source]
        last: Box<Self>,
    },
    /// A local path that is not below one of the roots, or leads out of it.
    #[error("{} may not be read: {problem}", path.display())]
    Path {
        /// As given.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A directory, device, pipe or socket.
    #[error("{} is no regular file", .0.display())]
    NotAFile(PathBuf),
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

struct Detail<'a>(&'a Option<String>);

impl std::fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|detail| write!(f, ", {detail}"))
    }
}

struct Later<'a>(&'a Option<Duration>);

impl std::fmt::Display for Later<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(pause) = self.0 else { return Ok(()) };
        write!(f, "; it wants to be asked again in {} s", pause.as_secs())
    }
}

impl SourceError {
    /// What machines recognise it by; the table is in the crate's description.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Location { .. } => "bad_location",
            Self::Refused { refusal, .. } => match refusal {
                Refusal::Scheme { .. } => "denied_scheme",
                Refusal::Host { .. } => "denied_host",
                Refusal::Port { .. } => "denied_port",
                Refusal::Address { .. } => "denied_address",
            },
            Self::Redirect { .. } => "bad_redirect",
            Self::Unresolved { .. } => "unresolved_host",
            Self::Unreachable { .. } => "unreachable",
            Self::TooSlow { .. } => "too_slow",
            Self::Tls { fault, .. } => fault.code(),
            Self::Trust { .. } => "no_trust_anchor",
            Self::Unauthorized { .. } => "unauthorized",
            Self::NotFound { .. } => "not_found",
            Self::Status { .. } => "unexpected_status",
            Self::Answer { .. } => "bad_answer",
            Self::BrokeOff { .. } => "broke_off",
            Self::Changed { .. } => "source_changed",
            Self::WrongLength { .. } => "wrong_length",
            Self::NotResumable { .. } => "not_resumable",
            Self::GaveUp { last, .. } => last.code(),
            Self::Path { .. } => "denied_path",
            Self::NotAFile(_) => "not_a_file",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "not_found",
            Self::Io { .. } => "io",
        }
    }

    /// True if the same request may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unresolved { .. } | Self::Unreachable { .. } | Self::TooSlow { .. } | Self::BrokeOff { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 507..=599),
            Self::GaveUp { last, .. } => last.is_transient(),
            _ => false,
        }
    }

    /// The source's error that a [`crate::PieceReader`] failed with; none if `error` comes from elsewhere.
    #[must_use]
    pub fn within(error: &io::Error) -> Option<&Self> {
        find(error)
    }

    /// When the server wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(crate) fn io(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}
