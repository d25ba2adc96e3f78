//! One object from its first wanted byte to its last, over as many connections as it takes.
//!
//! ```text
//!            open                      answer 200/206, same object
//!   caller ───────> ask ──────────────────────────────────────────> body ──> pieces, until length is reached
//!                    ^  │ transient failure                          │ broke off, silent, too slow
//!                    │  v                                            v
//!                    └─ pause (grows; Retry-After) <─────────────────┘      no tries left: GaveUp
//!   another object, ranges ignored, wrong length, refused address: the end at once
//! ```
//!
//! Every question after the first begins at the first byte not yet received, so no byte is fetched twice.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::header::{CONTENT_RANGE, TRANSFER_ENCODING};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use crate::agent::{Agent, Answer, Question, is_framed};
use crate::body::{Broken, Flow};
use crate::error::SourceError;
use crate::identity::{Comparison, ContentRange, Identity, content_length};
use crate::limits::{Limits, Patience};
use crate::opened::{Opened, Progress};
use crate::target::Target;

/// A fetch under way.
struct Fetch {
    agent: Agent,
    target: Arc<Target>,
    /// What the object has to be; none until the first answer if the caller expects nothing.
    identity: Option<Identity>,
    /// The first byte not received yet.
    offset: u64,
    /// Where a redirect led: asked first when going on, because another mirror may serve another edition.
    direct: Option<Url>,
    body: Option<Body>,
    patience: Patience,
    progress: Progress,
}

/// Begins to fetch `target` at byte `offset`. With `expected`, it has to be that object.
pub(crate) async fn open(
    agent: &Agent,
    target: &Arc<Target>,
    offset: u64,
    expected: Option<&Identity>,
) -> Result<Opened, SourceError> {
    let mut fetch = Fetch {
        agent: agent.clone(),
        target: Arc::clone(target),
        identity: expected.cloned(),
        offset,
        direct: None,
        body: None,
        patience: Patience::new(offset),
        progress: Progress::new(expected.and_then(|identity| identity.length_bytes)),
    };
    let body = fetch.connect().await?;
    fetch.body = Some(body);
    let identity = fetch.identity.clone().unwrap_or_default();
    let progress = fetch.progress.clone();
    let pieces = stream::unfold(Some(fetch), |fetch| async move {
        let mut fetch = fetch?;
        match fetch.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(fetch))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(Opened::new(identity, offset, progress, pieces.boxed()))
}

/// Asks what `target` is, without its bytes.
pub(crate) async fn probe(agent: &Agent, target: &Target) -> Result<Identity, SourceError> {
    let mut patience = Patience::new(0);
    let mut method = Method::HEAD;
    loop {
        patience.request();
        let question = Question {
            method: method.clone(),
            url: target.url(&method),
            offset: 0,
            if_range: None,
            login: target.login(),
        };
        let error = match agent.ask(question).await {
            Ok(answer) => {
                let headers = answer.response.headers();
                return Ok(Identity::of_headers(headers, content_length(headers)));
            }
            // Some servers know no `HEAD`: then the body is begun and left.
            Err(SourceError::Status { status: 405 | 501, .. }) if method == Method::HEAD => {
                method = Method::GET;
                continue;
            }
            Err(error) => error,
        };
        bear(error, &mut patience, &agent.limits, (target, 0)).await?;
    }
}

/// Waits after a failure that may pass; gives back one that does not, or one too many.
async fn bear(
    error: SourceError,
    patience: &mut Patience,
    limits: &Limits,
    (target, offset): (&Target, u64),
) -> Result<(), SourceError> {
    if !error.is_transient() {
        return Err(error);
    }
    let Some(pause) = patience.fail(limits, offset, error.retry_after()) else {
        return Err(match patience.failed() {
            1 => error,
            tries => SourceError::GaveUp {
                url: target.shown(),
                offset,
                tries,
                last: Box::new(error),
            },
        });
    };
    tracing::info!(
        offset,
        pause_ms = pause.as_millis(),
        "trying again: {error}{}",
        cause(&error)
    );
    tokio::time::sleep(pause).await;
    Ok(())
}

/// The innermost reason, for a log line.
fn cause(error: &SourceError) -> String {
    let mut next = std::error::Error::source(error);
    let mut text = String::new();
    while let Some(source) = next {
        text = format!(": {source}");
        next = source.source();
    }
    text
}

impl Fetch {
    /// Asks until there is a body.
    async fn connect(&mut self) -> Result<Body, SourceError> {
        loop {
            let error = match self.attempt().await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            self.bear(error).await?;
        }
    }

    async fn bear(&mut self, error: SourceError) -> Result<(), SourceError> {
        let limits = Arc::clone(&self.agent.limits);
        bear(error, &mut self.patience, &limits, (&self.target, self.offset)).await?;
        self.progress.add_retry();
        Ok(())
    }

    async fn attempt(&mut self) -> Result<Body, SourceError> {
        if let Some(direct) = self.direct.take() {
            match self.ask(direct.clone()).await {
                // What a redirect led to may be for a while only, or for one use.
                Err(SourceError::Unauthorized { .. } | SourceError::NotFound { .. } | SourceError::Status { .. }) => {}
                Ok(answer) => {
                    self.direct = Some(answer.url.clone());
                    return self.take(answer);
                }
                Err(error) => return Err(error),
            }
        }
        let url = self.target.url(&Method::GET);
        let answer = self.ask(url.clone()).await?;
        if answer.url != url {
            self.direct = Some(answer.url.clone());
        }
        self.take(answer)
    }

    async fn ask(&mut self, url: Url) -> Result<Answer, SourceError> {
        self.patience.request();
        let question = Question {
            method: Method::GET,
            url,
            offset: self.offset,
            if_range: self.identity.as_ref().and_then(Identity::if_range),
            login: self.target.login(),
        };
        self.agent.ask(question).await
    }

    /// Makes sure that an answer goes on where it has to, in the object it has to.
    fn take(&mut self, answer: Answer) -> Result<Body, SourceError> {
        let response = answer.response;
        let headers = response.headers();
        let stated = response.content_length();
        let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let range = range.and_then(ContentRange::parse);
        let left = match (response.status(), range) {
            (StatusCode::OK, _) if self.offset == 0 => {
                self.settle(Identity::of_headers(headers, stated))?;
                let known = self.identity.as_ref().and_then(|identity| identity.length_bytes);
                if !is_framed(headers, stated.or(known)) {
                    return Err(
                        self.answers_wrongly("it gives no length, so that a broken connection looks like the end")
                    );
                }
                stated
            }
            (StatusCode::OK, _) => {
                self.settle(Identity::of_headers(headers, stated))?;
                return Err(self.not_resumable("its server sends whole objects only"));
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange { total: Some(total), .. })) => {
                self.is_end(Identity::of_headers(headers, Some(total)), total)?;
                Some(0)
            }
            (
                StatusCode::PARTIAL_CONTENT,
                Some(ContentRange {
                    span: Some((first, last)),
                    total,
                }),
            ) => {
                if first != self.offset {
                    return Err(self.answers_wrongly("it sends another range than the one it was asked for"));
                }
                self.settle(Identity::of_headers(headers, total))?;
                let span = (last - first).saturating_add(1);
                if stated.is_some_and(|stated| stated != span) {
                    return Err(self.answers_wrongly("it states two lengths of one range"));
                }
                Some(span)
            }
            _ => return Err(self.answers_wrongly("it does not say which range it sends")),
        };
        Ok(Body {
            flow: Flow::new(&self.agent.limits),
            // Without a stated length, an end that is seen at all was marked as such, or comes with a drop.
            end_is_marked: left.is_none() && headers.contains_key(TRANSFER_ENCODING),
            response,
            left,
        })
    }

    /// Compares what an answer says of its object with what that has to be.
    fn settle(&mut self, found: Identity) -> Result<(), SourceError> {
        let Some(identity) = &mut self.identity else {
            self.progress.set_total(found.length_bytes);
            self.identity = Some(found);
            return Ok(());
        };
        match identity.compare(&found) {
            Comparison::Same => identity.complete(found),
            // Nothing was received yet: whatever it is, it is one object.
            Comparison::Unknown if self.offset == 0 => identity.complete(found),
            Comparison::Unknown => {
                return Err(self.not_resumable("its server gives neither ETag nor Last-Modified to compare"));
            }
            Comparison::Changed(difference) => {
                return Err(SourceError::Changed {
                    subject: self.target.shown(),
                    difference,
                });
            }
            Comparison::Length {
                expected_bytes,
                found_bytes,
            } => return Err(self.wrong_length(expected_bytes, found_bytes.to_string())),
        }
        self.progress.set_total(identity.length_bytes);
        Ok(())
    }

    /// Makes sure that an object of `total` bytes, of which the server has none from the offset on, is complete.
    fn is_end(&mut self, found: Identity, total: u64) -> Result<(), SourceError> {
        if let Some(identity) = &self.identity
            && let Comparison::Changed(difference) = identity.compare(&found)
        {
            let subject = self.target.shown();
            return Err(SourceError::Changed { subject, difference });
        }
        let known = self.identity.as_ref().and_then(|identity| identity.length_bytes);
        let expected_bytes = known.unwrap_or(self.offset);
        if total != expected_bytes || total != self.offset {
            return Err(self.wrong_length(expected_bytes, total.to_string()));
        }
        self.identity.get_or_insert_default().complete(found);
        self.progress.set_total(Some(total));
        Ok(())
    }

    /// The next piece; none after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let length = self.identity.as_ref().and_then(|identity| identity.length_bytes);
            if length == Some(self.offset) {
                return Ok(None);
            }
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.reconnect().await?,
            };
            let broken = match body.flow.piece(&mut body.response, &self.agent.limits).await {
                Ok(Some(piece)) => {
                    let count = piece.len() as u64;
                    let end = self.offset.saturating_add(count);
                    if body.left.is_some_and(|left| left < count) || length.is_some_and(|length| length < end) {
                        return Err(self.wrong_length(length.unwrap_or(self.offset), "more".to_owned()));
                    }
                    body.left = body.left.map(|left| left - count);
                    self.offset = end;
                    self.progress.add_bytes(count);
                    self.body = Some(body);
                    return Ok(Some(piece));
                }
                // A body without a stated length has its end marked; any other ends where it was stated to.
                Ok(None) if length.is_none() && body.left.unwrap_or(0) == 0 => {
                    self.progress.set_total(Some(self.offset));
                    return Ok(None);
                }
                Ok(None) if body.end_is_marked => {
                    return Err(self.wrong_length(length.unwrap_or(self.offset), self.offset.to_string()));
                }
                Ok(None) => self.broke_off(None),
                Err(Broken::Slow(problem)) => SourceError::TooSlow {
                    url: self.target.shown(),
                    problem,
                },
                Err(Broken::Off(source)) => self.broke_off(Some(source)),
            };
            drop(body);
            self.bear(broken).await?;
        }
    }

    async fn reconnect(&mut self) -> Result<Body, SourceError> {
        let comparable = self.identity.as_ref().is_some_and(Identity::is_comparable);
        if self.offset > 0 && !comparable {
            return Err(self.not_resumable("its server gives neither ETag nor Last-Modified to compare"));
        }
        self.connect().await
    }

    fn broke_off(&self, source: Option<reqwest::Error>) -> SourceError {
        SourceError::BrokeOff {
            url: self.target.shown(),
            offset: self.offset,
            source: source.map(|error| error.without_url().into()),
        }
    }

    fn not_resumable(&self, problem: &'static str) -> SourceError {
        SourceError::NotResumable {
            url: self.target.shown(),
            offset: self.offset,
            problem,
        }
    }

    fn wrong_length(&self, expected_bytes: u64, found: String) -> SourceError {
        SourceError::WrongLength {
            subject: self.target.shown(),
            expected_bytes,
            found,
        }
    }

    fn answers_wrongly(&self, problem: &str) -> SourceError {
        SourceError::Answer {
            url: self.target.shown(),
            problem: problem.to_owned(),
        }
    }
}

/// The body of one answer.
struct Body {
    response: Response,
    /// Bytes it has still to bring; none if it was not stated.
    left: Option<u64>,
    end_is_marked: bool,
    flow: Flow,
}
