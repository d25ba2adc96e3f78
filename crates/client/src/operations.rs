//! Operations.

use std::time::Duration;

use api_types::{Operation, OperationId, OperationList};

use crate::error::ClientError;
use crate::transport::Client;

/// How often an operation is looked at while somebody waits: often enough for a smooth progress bar.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Client {
    /// All operations that are remembered, newest first.
    pub async fn operations(&self) -> Result<Vec<Operation>, ClientError> {
        Ok(self.get::<OperationList>("/v1/operations").await?.items)
    }

    /// One operation.
    pub async fn operation(&self, id: OperationId) -> Result<Operation, ClientError> {
        self.get(&format!("/v1/operations/{id}")).await
    }

    /// Asks for an operation to be given up.
    pub async fn cancel(&self, id: OperationId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/operations/{id}")).await
    }

    /// Waits until the operation is over, and shows every state seen on the way. One that failed or was cancelled is an error.
    pub async fn wait(&self, id: OperationId, mut show: impl FnMut(&Operation)) -> Result<Operation, ClientError> {
        loop {
            let operation = self.operation(id).await?;
            show(&operation);
            if let Some(problem) = operation.error {
                return Err(ClientError::Refused(Box::new(problem)));
            }
            if operation.phase.is_final() {
                return Ok(operation);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
