//! An object that HTTP gets at, however it is addressed.

use reqwest::Method;
use url::Url;

use crate::agent::shown;
use crate::login::Login;
use crate::object::Object;

/// What is fetched.
#[derive(Debug)]
pub(crate) enum Target {
    Web { url: Url, login: Option<Login> },
    S3(Object),
}

impl Target {
    /// The URL to ask now; one of S3 is signed for a while from now.
    pub(crate) fn url(&self, method: &Method) -> Url {
        match self {
            Self::Web { url, .. } => url.clone(),
            Self::S3(object) => object.sign(method),
        }
    }

    /// Credentials, and the URL whose host they are for.
    pub(crate) fn login(&self) -> Option<(&Login, &Url)> {
        match self {
            Self::Web { url, login } => login.as_ref().map(|login| (login, url)),
            Self::S3(_) => None,
        }
    }

    /// As it is reported.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Web { url, .. } => shown(url),
            Self::S3(object) => object.shown(),
        }
    }
}
