//! One question over HTTP and its answer: redirects, credentials, time limits, and errors told apart.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use crate::chain::find;
use crate::error::SourceError;
use crate::limits::Limits;
use crate::login::Login;
use crate::policy::{AddressPolicy, Refusal};
use crate::resolve::{Guard, Lookup, SystemLookup, Unresolved};
use crate::tls;
use crate::tls_fault::TlsFault;

const USER_AGENT: &str = concat!("karat/", env!("CARGO_PKG_VERSION"));
/// How much of a failing answer is read for its explanation, bytes.
const DETAIL_MAX: usize = 8 << 10;
/// How long that may take.
const DETAIL_TIMEOUT: Duration = Duration::from_secs(2);

/// What an [`Agent`] is made from. [`Default`] is: the default policy and limits, the host's own certificate authorities and name
/// service.
#[derive(Clone, Default)]
pub struct AgentOptions {
    /// Where it may connect to.
    pub policy: AddressPolicy,
    /// How long it waits and how often it tries.
    pub limits: Limits,
    /// Certificate authorities in PEM form that servers must be vouched for by; they *replace* those of the host.
    pub authorities_pem: Option<Vec<u8>>,
    /// Who resolves names; none: the host's name service.
    pub lookup: Option<Arc<dyn Lookup>>,
}

/// Speaks HTTP for any number of sources under one policy, and keeps connections open between them. Cheap to clone; to be used
/// within a tokio runtime. Proxies named in the environment are not used: behind one no address could be checked.
#[derive(Clone)]
pub struct Agent {
    pub(crate) client: reqwest::Client,
    pub(crate) policy: Arc<AddressPolicy>,
    pub(crate) limits: Arc<Limits>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { policy, limits, .. } = self;
        f.debug_struct("Agent")
            .field("policy", policy)
            .field("limits", limits)
            .finish_non_exhaustive()
    }
}

/// A question: what to ask for, and from where on.
pub(crate) struct Question<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// First byte wanted; 0 asks without a range.
    pub(crate) offset: u64,
    /// Validator under which a range is wanted.
    pub(crate) if_range: Option<&'a str>,
    /// Credentials, and the URL whose scheme, host and port they are for.
    pub(crate) login: Option<(&'a Login, &'a Url)>,
}

/// An answer that is no redirect and no failure: status 200, 206 or 416.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Where the last redirect led.
    pub(crate) url: Url,
}

impl Agent {
    /// Makes one. Reads the host's certificate authorities unless `options` brings its own.
    ///
    /// # Errors
    /// [`SourceError::Trust`] if there are no certificate authorities.
    pub fn new(options: AgentOptions) -> Result<Self, SourceError> {
        tls::install_cryptography();
        let policy = Arc::new(options.policy);
        let limits = Arc::new(options.limits);
        let lookup = options.lookup.unwrap_or_else(|| Arc::new(SystemLookup));
        let guard = Guard {
            policy: Arc::clone(&policy),
            lookup,
        };
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(limits.connect_timeout())
            .dns_resolver(guard)
            .user_agent(USER_AGENT);
        if let Some(pem) = &options.authorities_pem {
            builder = builder.tls_certs_only(tls::authorities(pem)?);
        }
        let client = builder.build().map_err(|source| SourceError::Trust {
            problem: match options.authorities_pem {
                Some(_) => "the source's bundle of certificate authorities cannot be used".to_owned(),
                None => "the host knows no certificate authorities; install package ca-certificates".to_owned(),
            },
            source: Some(Box::new(source)),
        })?;
        Ok(Self { client, policy, limits })
    }

    /// Asks, follows redirects, and sorts answers.
    pub(crate) async fn ask(&self, question: Question<'_>) -> Result<Answer, SourceError> {
        let mut url = question.url.clone();
        for _ in 0..=self.policy.redirects_max {
            let response = self.exchange(&question, &url).await?;
            let status = response.status();
            if is_redirect(status) {
                url = self.next_hop(&url, &response)?;
                continue;
            }
            let ranged = question.offset > 0;
            return match status {
                StatusCode::OK => Ok(Answer { response, url }),
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if ranged => {
                    Ok(Answer { response, url })
                }
                _ => Err(failure(response, &url).await),
            };
        }
        Err(SourceError::Redirect {
            url: shown(&question.url),
            problem: format!("more than {} times", self.policy.redirects_max),
        })
    }

    /// One request and the head of its answer.
    async fn exchange(&self, question: &Question<'_>, url: &Url) -> Result<Response, SourceError> {
        self.policy.check_url(url).map_err(|refusal| SourceError::Refused {
            url: shown(url),
            refusal,
        })?;
        let mut request = self
            .client
            .request(question.method.clone(), url.clone())
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if question.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", question.offset));
            if let Some(validator) = question.if_range {
                request = request.header(IF_RANGE, validator);
            }
        }
        if let Some((login, home)) = question.login
            && home.origin() == url.origin()
        {
            request = login.put_on(request);
        }
        let limit = self.limits.connect_timeout() + self.limits.answer_timeout();
        match tokio::time::timeout(limit, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(explain(error, url)),
            Err(_) => Err(SourceError::TooSlow {
                url: shown(url),
                problem: format!("no answer within {} s", limit.as_secs_f32()),
            }),
        }
    }

    /// Where a redirect leads, unless it must not.
    pub(crate) fn next_hop(&self, url: &Url, response: &Response) -> Result<Url, SourceError> {
        let wrong = |problem: String| SourceError::Redirect {
            url: shown(url),
            problem,
        };
        let Some(location) = response.headers().get(LOCATION) else {
            let region = header_text(response.headers(), "x-amz-bucket-region");
            return Err(wrong(match region {
                Some(region) => format!("without saying where; its bucket is in region {region}"),
                None => "without saying where".to_owned(),
            }));
        };
        let location = location.to_str().ok().and_then(|text| url.join(text).ok());
        let mut next = location.ok_or_else(|| wrong("to what is no URL".to_owned()))?;
        // A redirect brings no credentials of its own. Where there can be none, the policy knows no such scheme either.
        let _ = next.set_username("");
        let _ = next.set_password(None);
        if !self.policy.may_follow(url, &next) {
            return Err(wrong(format!(
                "from https to {}; if that is meant, set redirect_to_plain_http",
                shown(&next)
            )));
        }
        tracing::debug!(from = shown(url), to = shown(&next), "following a redirect");
        Ok(next)
    }
}

/// Whether the answer is elsewhere (RFC 9110 §15.4).
pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A URL as it may be logged and reported: without user, password, query and fragment.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // These fail for URLs that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// A URL as sources report it and records keep it: without user, password, query and fragment; none for what is no URL.
#[must_use]
pub fn without_secrets(url: &str) -> Option<String> {
    Url::parse(url).ok().map(|url| shown(&url))
}

/// True if the end of the body is told from a broken connection.
pub(crate) fn is_framed(headers: &HeaderMap, length: Option<u64>) -> bool {
    length.is_some() || headers.contains_key(TRANSFER_ENCODING)
}

/// Why a request failed, from the chain of errors that the HTTP client gives.
pub(crate) fn explain(error: reqwest::Error, at: &Url) -> SourceError {
    let url = shown(at);
    // The client's own text names the URL, query and all.
    let error = error.without_url();
    let chain: &(dyn Error + 'static) = &error;
    if let Some(refusal) = find::<Refusal>(chain) {
        let refusal = refusal.clone();
        return SourceError::Refused { url, refusal };
    }
    if let Some(fault) = TlsFault::of(chain) {
        return SourceError::Tls {
            url,
            fault,
            source: Box::new(error),
        };
    }
    if find::<Unresolved>(chain).is_some() {
        return SourceError::Unresolved {
            url,
            source: Box::new(error),
        };
    }
    if error.is_timeout() {
        return SourceError::TooSlow {
            url,
            problem: "the connection was not made in time".to_owned(),
        };
    }
    SourceError::Unreachable {
        url,
        source: Box::new(error),
    }
}

/// What a status of failure means.
pub(crate) async fn failure(response: Response, url: &Url) -> SourceError {
    let url = shown(url);
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers(), SystemTime::now());
    let detail = detail(response).await;
    match status {
        401 | 403 => SourceError::Unauthorized { url, status, detail },
        404 | 410 => SourceError::NotFound { url, status, detail },
        status => SourceError::Status {
            url,
            status,
            detail,
            retry_after,
        },
    }
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// What an S3 server says about a failure: code and message from its XML.
async fn detail(mut response: Response) -> Option<String> {
    let media_type = header_text(response.headers(), CONTENT_TYPE.as_str())?;
    if !media_type.contains("xml") {
        return None;
    }
    let mut body = Vec::new();
    let read = async {
        while body.len() < DETAIL_MAX {
            match response.chunk().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                _ => return,
            }
        }
    };
    // Whatever came in time is enough.
    let _ = tokio::time::timeout(DETAIL_TIMEOUT, read).await;
    let text = String::from_utf8_lossy(body.get(..DETAIL_MAX).unwrap_or(&body));
    let code = element(&text, "Code")?;
    Some(match element(&text, "Message") {
        Some(message) => format!("{code}: {message}"),
        None => code,
    })
}

/// The text of the first element called `name`, cleaned for a log line.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.chars().filter(|char| !char.is_control()).take(200).collect())
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    Some(text.chars().take(100).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let url = Url::parse("https://user:pw@mirror.test/a%20b?X-Amz-Signature=secret#f").unwrap();
        assert_eq!(shown(&url), "https://mirror.test/a%20b");
    }

    #[test]
    fn retry_after_in_both_forms() {
        let at = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(
                &headers,
                httpdate::parse_http_date("Mon, 01 Jan 2024 00:00:10 GMT").unwrap(),
            )
        };
        assert_eq!(at("120"), Some(Duration::from_secs(120)));
        assert_eq!(at("Mon, 01 Jan 2024 00:00:40 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(at("Mon, 01 Jan 2024 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(at("soon"), None);
        assert_eq!(at("-5"), None);
    }

    #[test]
    fn what_s3_servers_say() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>not\nthere</Message></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("NoSuchKey"));
        assert_eq!(element(xml, "Message").as_deref(), Some("notthere"));
        assert_eq!(element("<Code>unfinished", "Code"), None);
        assert!(
            element(&format!("<Code>{}</Code>", "x".repeat(5000)), "Code")
                .unwrap()
                .len()
                <= 200
        );
    }
}
