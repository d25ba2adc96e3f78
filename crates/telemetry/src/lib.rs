//! Logs: where they go, how they look, and how a guest is kept from flooding them.
//!
//! [`init`] is called once, first thing in `main`. [`RateLimited`] stands in front of every line a guest can cause.

mod limit;
mod setup;

pub use limit::{Admitted, RateLimited};
pub use setup::{FILTER_VARIABLE, FilterError, init};
