//! One object in an object store, and the URLs that get at it.

use std::fmt;
use std::time::Duration;

use reqwest::Method;
use rusty_s3::actions::{GetObject, HeadObject, S3Action};
use rusty_s3::{Bucket, Credentials};
use url::Url;

/// How long a signed URL is good for: it is used at once, but clocks differ (S3 tolerates 15 minutes).
const SIGNED_FOR: Duration = Duration::from_secs(15 * 60);

/// Bucket, key and credentials.
pub(crate) struct Object {
    pub(crate) bucket: Bucket,
    pub(crate) key: String,
    /// One of its versions; none for the latest.
    pub(crate) version: Option<String>,
    pub(crate) credentials: Option<Credentials>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Object {
    pub(crate) fn sign(&self, method: &Method) -> Url {
        let credentials = self.credentials.as_ref();
        if *method == Method::HEAD {
            let action = HeadObject::new(&self.bucket, credentials, &self.key);
            sign(action, self.version.as_deref())
        } else {
            let action = GetObject::new(&self.bucket, credentials, &self.key);
            sign(action, self.version.as_deref())
        }
    }

    pub(crate) fn shown(&self) -> String {
        let host = self.bucket.base_url().host_str().unwrap_or_default();
        format!("s3://{}/{} ({host})", self.bucket.name(), self.key)
    }
}

fn sign<'a>(mut action: impl S3Action<'a>, version: Option<&'a str>) -> Url {
    if let Some(version) = version {
        action.query_mut().insert("versionId", version);
    }
    action.sign(SIGNED_FOR)
}
