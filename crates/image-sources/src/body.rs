//! The body of an answer as it comes: neither silent for long nor slower than the least rate.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::Instant;

use crate::limits::{Limits, RateMeter};

/// Why a body ended early.
pub(crate) enum Broken {
    Off(reqwest::Error),
    Slow(String),
}

/// How fast a body comes.
#[derive(Debug)]
pub(crate) struct Flow {
    meter: RateMeter,
    slow: bool,
}

impl Flow {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            meter: RateMeter::new(limits),
            slow: false,
        }
    }

    /// The next piece of `response`; none after the last.
    pub(crate) async fn piece(&mut self, response: &mut Response, limits: &Limits) -> Result<Option<Bytes>, Broken> {
        let silent_since = Instant::now();
        loop {
            if self.slow {
                return Err(Broken::Slow(format!(
                    "less than {} bytes/s over {} s",
                    limits.rate_min_bytes_per_s,
                    Duration::from_millis(limits.rate_window_ms).as_secs_f32()
                )));
            }
            let silence = limits.idle_timeout().saturating_sub(silent_since.elapsed());
            if silence.is_zero() {
                let seconds = limits.idle_timeout().as_secs_f32();
                return Err(Broken::Slow(format!("nothing came for {seconds} s")));
            }
            let since = Instant::now();
            match tokio::time::timeout(silence.min(self.meter.left()), response.chunk()).await {
                Ok(Ok(piece)) => {
                    let count = piece.as_ref().map_or(0, |piece| piece.len() as u64);
                    // What came is not thrown away: the next call fails.
                    self.slow = !self.meter.note(since, count);
                    if piece.as_ref().is_some_and(Bytes::is_empty) {
                        continue;
                    }
                    return Ok(piece);
                }
                Ok(Err(error)) => return Err(Broken::Off(error)),
                Err(_) => self.slow = !self.meter.note(since, 0),
            }
        }
    }
}
