//! One type for all sources.

use crate::error::SourceError;
use crate::file::FileSource;
use crate::identity::Identity;
use crate::opened::Opened;
use crate::s3::S3Source;
use crate::web::WebSource;

/// Somewhere bytes come from. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Source {
    /// `http://…`, `https://…`.
    Web(WebSource),
    /// `s3://bucket/key`.
    S3(S3Source),
    /// A local path.
    File(FileSource),
}

impl Source {
    /// Opens it at its beginning.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn open(&self) -> Result<Opened, SourceError> {
        self.open_at(0, None).await
    }

    /// Opens it at byte `offset`. With `expected`, from an earlier [`Opened::identity`] or of known length only, it has to be that
    /// object.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn open_at(&self, offset: u64, expected: Option<&Identity>) -> Result<Opened, SourceError> {
        match self {
            Self::Web(source) => source.open_at(offset, expected).await,
            Self::S3(source) => source.open_at(offset, expected).await,
            Self::File(source) => source.open_at(offset, expected).await,
        }
    }

    /// What it is now, without its bytes: to ask whether there is anything new.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn probe(&self) -> Result<Identity, SourceError> {
        match self {
            Self::Web(source) => source.probe().await,
            Self::S3(source) => source.probe().await,
            Self::File(source) => source.probe().await,
        }
    }

    /// Where it is, without secrets.
    #[must_use]
    pub fn location(&self) -> String {
        match self {
            Self::Web(source) => source.location(),
            Self::S3(source) => source.location(),
            Self::File(source) => source.path().display().to_string(),
        }
    }
}
