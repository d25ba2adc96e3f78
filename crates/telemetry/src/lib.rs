//! Logs: where they go, how they look, and how a guest is kept from flooding them; and how long things take.
//!
//! [`init`] is called once, first thing in `main`. [`RateLimited`] stands in front of every line a guest can cause.
//! [`Histogram`] is where the data path records latencies.

mod histogram;
mod limit;
mod setup;

pub use histogram::{Bucket, Histogram, HistogramSnapshot};
pub use limit::{Admitted, RateLimited};
pub use setup::{FILTER_VARIABLE, FilterError, init};
