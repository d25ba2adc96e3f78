//! Where logs go and how they look.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Environment variable with what is logged: a level, or levels by module, as `info,host=debug,rest=trace`.
pub const FILTER_VARIABLE: &str = "KARAT_LOG";

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The variable does not parse.
    #[error("{FILTER_VARIABLE}={text:?} is no filter: write a level, or levels by module, as info,host=debug")]
    Malformed {
        /// What it holds.
        text: String,
        /// Why it does not parse.
        #[source]
        source: ParseError,
    },
    /// Logs were set up before.
    #[error("logs are set up twice")]
    Twice(#[source] TryInitError),
}

/// Sends all logs of this process to standard error: for people where that is a terminal, as one JSON object per line
/// elsewhere (so under systemd). [`FILTER_VARIABLE`] chooses what is logged; `info` without it.
pub fn init(program: &str) -> Result<(), FilterError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.trim().is_empty() => text
            .parse::<Targets>()
            .map_err(|source| FilterError::Malformed { text, source })?,
        _ => Targets::new().with_default(LevelFilter::INFO),
    };
    let registry = tracing_subscriber::registry().with(filter);
    // A line that can not be written is lost and nothing more: reporting that on standard error, as the layer would by
    // itself, panics when standard error is what broke, and a machine process outlives the reader of its logs.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let done = if std::io::stderr().is_terminal() {
        registry.with(lines.with_target(false)).try_init()
    } else {
        registry
            .with(lines.json().flatten_event(true).with_current_span(false))
            .try_init()
    };
    done.map_err(FilterError::Twice)?;
    tracing::debug!(program, version = env!("CARGO_PKG_VERSION"), "logs are set up");
    Ok(())
}
