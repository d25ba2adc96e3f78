//! What handlers take from a request. Everything that does not fit is a problem, in words.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use crate::limits::BODY_MAX;
use crate::problem::Problem;
use crate::serve::Peer;
use crate::tls::RemotePeer;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

/// A JSON body that may be left out.
pub(crate) struct OptionalBody<T>(pub(crate) T);

/// Query parameters; unknown ones are problems where the type says so.
pub(crate) struct Params<T>(pub(crate) T);

/// One decoded segment of the path.
pub(crate) struct Segment(pub(crate) String);

/// All decoded segments of a path that has several.
pub(crate) struct Segments<const N: usize>(pub(crate) [String; N]);

/// Who asks, as the kernel or a certificate tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    uid: Option<u32>,
    is_remote: bool,
}

impl Caller {
    /// Whether it is root, the user the daemon runs as, or somebody with a certificate.
    pub(crate) fn is_admin(self) -> bool {
        self.is_remote
            || self
                .uid
                .is_some_and(|uid| uid == 0 || uid == rustix::process::geteuid().as_raw())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let uid = parts.extensions.get::<Peer>().map(|peer| peer.uid);
        let is_remote = parts.extensions.get::<RemotePeer>().is_some();
        Ok(Self { uid, is_remote })
    }
}

/// The revision in `If-Match`, if there is one (RFC 9110 §13.1.1).
pub(crate) struct IfMatch(pub(crate) Option<u64>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = read(request, state).await?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| malformed(&error))
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = read(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| malformed(&error))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(Problem::invalid(format!(
                "the query is not understood: {}",
                error.body_text()
            ))),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(error) => Err(Problem::invalid(format!(
                "the path is not understood: {}",
                error.body_text()
            ))),
        }
    }
}

impl<const N: usize, S: Send + Sync> FromRequestParts<S> for Segments<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let wrong = |text: String| Problem::invalid(format!("the path is not understood: {text}"));
        let Path(texts) = Path::<Vec<String>>::from_request_parts(parts, state)
            .await
            .map_err(|error| wrong(error.body_text()))?;
        let found = texts.len();
        let texts = texts.try_into();
        texts
            .map(Self)
            .map_err(|_| wrong(format!("it has {found} names, not {N}")))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        if_match(&parts.headers).map(Self)
    }
}

fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let revision = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .and_then(|number| number.parse().ok());
    match revision {
        Some(revision) => Ok(Some(revision)),
        None => Err(Problem::invalid(format!(
            "If-Match: {text:?} is no entity tag of this API; send back the ETag of an earlier answer, as \"3\""
        ))),
    }
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let bytes = Bytes::from_request(request, state).await.map_err(|error| {
        if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let text = format!("the body has more than {BODY_MAX} bytes, the most that is taken");
            Problem::invalid(text).with_status(StatusCode::PAYLOAD_TOO_LARGE)
        } else {
            Problem::invalid(format!("the body can not be read: {}", error.body_text()))
        }
    })?;
    let is_json = content_type.as_ref().is_none_or(|value| {
        let media = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        let media = media.trim();
        media.eq_ignore_ascii_case("application/json") || media.eq_ignore_ascii_case("application/merge-patch+json")
    });
    if is_json || bytes.is_empty() {
        Ok(bytes)
    } else {
        let text = format!("the body is {content_type:?}; send JSON with Content-Type: application/json");
        Err(Problem::invalid(text).with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
    }
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::invalid(format!("the body is not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_are_revisions() {
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, text.parse().unwrap());
            if_match(&headers).ok()
        };
        assert_eq!(if_match(&HeaderMap::new()).ok(), Some(None));
        assert_eq!(with("\"12\""), Some(Some(12)));
        assert_eq!(with("*"), Some(None));
        for bad in ["12", "W/\"12\"", "\"x\"", "\"1\", \"2\"", "\""] {
            assert_eq!(with(bad), None, "{bad}");
        }
    }
}
