//! What has to be written down sooner or later, because somebody waits for it.

use std::fmt::Display;
use std::time::Duration;

use api_types::ErrorCode;

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Change, RegistryError};

/// How long to wait before what could not be written down is written again.
const AGAIN: Duration = Duration::from_secs(1);

impl Host {
    /// Writes `what` down, again and again until that works: a disk that some work has filled is full at the very moment at which the
    /// work is over.
    ///
    /// # Errors
    /// The daemon ends before; the next one settles it.
    pub(crate) async fn write_down<T, E>(
        &self,
        what: &'static str,
        change: impl Fn(&Change<'_>) -> Result<T, E> + Clone + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        E: From<RegistryError> + Display + Send + 'static,
    {
        loop {
            let change = change.clone();
            let error = match self.registry().change(move |now| change(now)).await {
                Ok(noted) => return Ok(noted),
                Err(error) => error,
            };
            tracing::error!(%error, "{what} can not be noted; it is tried again");
            if self.0.context.operations.closing() {
                let text = format!("{what} can not be noted, and the daemon is ending: {error}");
                return Err(Failure::new(ErrorCode::Internal, text));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
