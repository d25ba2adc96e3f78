//! Single requests for protocols of their own, such as a registry's: under the same guard as fetches.
//!
//! What is asked goes where the [`AddressPolicy`](crate::AddressPolicy) lets it, redirects and DNS included; credentials go to the
//! scheme, host and port they are for and to no other; answers are read within a bound, and neither they nor what is sent may be
//! slower than [`Limits`](crate::Limits) say. Nothing is tried twice here: the caller knows what may be repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use crate::agent::{Agent, explain, failure, is_redirect, shown};
use crate::body::{Broken, Flow};
use crate::error::SourceError;
use crate::limits::Limits;

/// Bytes handed to the connection at a time: what is sent is measured in these.
const SLICE: usize = 64 << 10;

/// A request.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is done.
    pub method: Method,
    /// With what.
    pub url: Url,
    /// Headers; without credentials.
    pub headers: HeaderMap,
    /// The `Authorization` header, for the scheme, host and port of `url` only. Marked sensitive here.
    pub authorization: Option<HeaderValue>,
    /// What is sent along.
    pub body: Option<Bytes>,
    /// How long the answer may take to begin, where more than [`Limits`] is due.
    pub answer_timeout: Option<Duration>,
}

impl Call {
    /// A request without headers and body.
    #[must_use]
    pub fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            authorization: None,
            body: None,
            answer_timeout: None,
        }
    }
}

/// The head of an answer, whatever its status but no redirect, and the body that is to come.
#[derive(Debug)]
pub struct Reply {
    response: Response,
    url: Url,
    flow: Flow,
    limits: Arc<Limits>,
    received: u64,
}

impl Agent {
    /// Asks, and follows redirects of questions (`GET` and `HEAD`); `elsewhere` asks what lies at another scheme, host or port, and
    /// never gets the credentials.
    ///
    /// # Errors
    /// [`SourceError`]; a status of failure is none yet, see [`Reply::success`].
    pub async fn call(&self, call: &Call, elsewhere: &Self) -> Result<Reply, SourceError> {
        let mut url = call.url.clone();
        let asks = matches!(call.method, Method::GET | Method::HEAD);
        for _ in 0..=self.policy.redirects_max {
            let at_home = url.origin() == call.url.origin();
            let agent = if at_home { self } else { elsewhere };
            let response = agent.send(call, &url, at_home).await?;
            if !is_redirect(response.status()) {
                return Ok(Reply {
                    response,
                    url,
                    flow: Flow::new(&agent.limits),
                    limits: Arc::clone(&agent.limits),
                    received: 0,
                });
            }
            if !asks {
                return Err(SourceError::Redirect {
                    url: shown(&url),
                    problem: "what is sent to it elsewhere, which is not followed".to_owned(),
                });
            }
            url = self.next_hop(&url, &response)?;
        }
        Err(SourceError::Redirect {
            url: shown(&call.url),
            problem: format!("more than {} times", self.policy.redirects_max),
        })
    }

    /// One request and the head of its answer.
    async fn send(&self, call: &Call, url: &Url, at_home: bool) -> Result<Response, SourceError> {
        self.policy.check_url(url).map_err(|refusal| SourceError::Refused {
            url: shown(url),
            refusal,
        })?;
        let mut request = self
            .client
            .request(call.method.clone(), url.clone())
            .headers(call.headers.clone())
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(secret) = call.authorization.as_ref().filter(|_| at_home) {
            let mut secret = secret.clone();
            secret.set_sensitive(true);
            request = request.header(AUTHORIZATION, secret);
        }
        let mut outgoing = Outgoing::default();
        if let Some(body) = &call.body {
            outgoing.total = body.len() as u64;
            request = outgoing.attach(request, body.clone());
        }
        let answer_timeout = self
            .limits
            .answer_timeout()
            .max(call.answer_timeout.unwrap_or_default());
        outgoing.watch(request, url, &self.limits, answer_timeout).await
    }
}

/// What is sent, as far as it is.
#[derive(Default)]
struct Outgoing {
    total: u64,
    handed_over: Arc<AtomicU64>,
}

impl Outgoing {
    fn attach(&self, request: RequestBuilder, body: Bytes) -> RequestBuilder {
        let handed_over = Arc::clone(&self.handed_over);
        let length = body.len();
        let slices = stream::unfold(body, move |mut rest| {
            let handed_over = Arc::clone(&handed_over);
            async move {
                let slice = rest.split_to(rest.len().min(SLICE));
                handed_over.fetch_add(slice.len() as u64, Ordering::Relaxed);
                (!slice.is_empty()).then_some((Ok::<_, std::io::Error>(slice), rest))
            }
        });
        request
            .header(CONTENT_LENGTH, length)
            .body(reqwest::Body::wrap_stream(slices))
    }

    /// Waits for the head of the answer: as long as what is sent goes out at the least rate, and the answer's own time after that.
    async fn watch(
        &self,
        request: RequestBuilder,
        url: &Url,
        limits: &Limits,
        answer_timeout: Duration,
    ) -> Result<Response, SourceError> {
        let slow = |problem: String| SourceError::TooSlow {
            url: shown(url),
            problem,
        };
        let sending = request.send();
        tokio::pin!(sending);
        let grace = limits.connect_timeout() + answer_timeout;
        let window = match limits.rate_window_ms {
            0 => grace,
            window => Duration::from_millis(window),
        };
        let mut sent = 0;
        let mut done_since = (self.total == 0).then(Instant::now);
        let mut window_since = Instant::now();
        loop {
            let deadline = match done_since {
                Some(since) => since + grace,
                // The first window has the connection to make as well.
                None if sent == 0 => window_since + window + limits.connect_timeout(),
                None => window_since + window,
            };
            match tokio::time::timeout_at(deadline, &mut sending).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(explain(error, url)),
                Err(_) if done_since.is_some() => {
                    return Err(slow(format!("no answer within {} s", grace.as_secs_f32())));
                }
                Err(_) => {}
            }
            let now = self.handed_over.load(Ordering::Relaxed);
            if now >= self.total {
                done_since = Some(Instant::now());
            } else if now - sent < limits.rate_min_bytes_per_s.saturating_mul(limits.rate_window_ms) / 1000
                || now == sent
            {
                return Err(slow(format!(
                    "it took {} bytes in {} s of what was sent to it",
                    now - sent,
                    window.as_secs_f32()
                )));
            }
            (sent, window_since) = (now, Instant::now());
        }
    }
}

impl Reply {
    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Where the answer is from, behind all redirects.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Itself, if its status is one of success.
    ///
    /// # Errors
    /// [`SourceError::Unauthorized`], [`SourceError::NotFound`] or [`SourceError::Status`]. Next to nothing of the body is read
    /// for it.
    pub async fn success(self) -> Result<Self, SourceError> {
        if self.response.status().is_success() {
            return Ok(self);
        }
        Err(failure(self.response, &self.url).await)
    }

    /// The next piece of the body; none after the last.
    ///
    /// # Errors
    /// [`SourceError::BrokeOff`] and [`SourceError::TooSlow`].
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>, SourceError> {
        match self.flow.piece(&mut self.response, &self.limits).await {
            Ok(piece) => {
                self.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                Ok(piece)
            }
            Err(Broken::Slow(problem)) => Err(SourceError::TooSlow {
                url: shown(&self.url),
                problem,
            }),
            Err(Broken::Off(source)) => Err(SourceError::BrokeOff {
                url: shown(&self.url),
                offset: self.received,
                source: Some(source.without_url().into()),
            }),
        }
    }

    /// The whole body, which may have so many bytes.
    ///
    /// # Errors
    /// [`SourceError::Answer`] as soon as it is longer, and those of [`Self::next_piece`].
    pub async fn bytes(mut self, limit_bytes: usize) -> Result<Vec<u8>, SourceError> {
        let mut body = Vec::new();
        while let Some(piece) = self.next_piece().await? {
            if body.len() + piece.len() > limit_bytes {
                return Err(SourceError::Answer {
                    url: shown(&self.url),
                    problem: format!("its answer is longer than the {limit_bytes} bytes one may have"),
                });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}
