//! Moves of machines between hosts, and what daemons tell each other about them.

use std::time::Duration;

use api_types::{
    DecisionRequest, IncomingMigration, IncomingMigrationList, IncomingMigrationWish, Migration, MigrationDecision,
    MigrationId, MigrationList, MigrationPatch, MigrationWish,
};

use crate::error::ClientError;
use crate::transport::Client;

/// How often a move is looked at while somebody waits.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long a peer daemon may take for an answer. What is asked of it is safe to ask again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The same where it builds a machine first, whose memory it may have to find in huge pages.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(300);

/// A peer may die without a word: then nothing would ever come.
async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let late = |_| {
        let text = format!("no answer in {} s", limit.as_secs());
        Err(ClientError::Broken(text.into()))
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(late)
}

impl Client {
    /// Moves that are remembered, newest first.
    pub async fn migrations(&self) -> Result<Vec<Migration>, ClientError> {
        Ok(self.get::<MigrationList>("/v1/migrations").await?.items)
    }

    /// One move.
    pub async fn migration(&self, id: MigrationId) -> Result<Migration, ClientError> {
        self.get(&format!("/v1/migrations/{id}")).await
    }

    /// Begins to move a machine.
    pub async fn migrate(&self, wish: &MigrationWish) -> Result<Migration, ClientError> {
        self.post("/v1/migrations", wish).await
    }

    /// Asks for a move to be given up; one that is over is forgotten.
    pub async fn cancel_migration(&self, id: MigrationId) -> Result<(), ClientError> {
        self.delete(&format!("/v1/migrations/{id}")).await
    }

    /// Gives a move another bandwidth.
    pub async fn tune_migration(&self, id: MigrationId, patch: &MigrationPatch) -> Result<Migration, ClientError> {
        self.patch(&format!("/v1/migrations/{id}"), patch).await
    }

    /// Waits until a move is over, and shows every state seen on the way. One that failed or was cancelled is an error.
    pub async fn wait_for_migration(
        &self,
        id: MigrationId,
        mut show: impl FnMut(&Migration),
    ) -> Result<Migration, ClientError> {
        loop {
            let migration = self.migration(id).await?;
            show(&migration);
            if let Some(problem) = migration.error {
                return Err(ClientError::Refused(Box::new(problem)));
            }
            if migration.phase.is_final() {
                return Ok(migration);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Machines that come, or came, from other hosts, newest first.
    pub async fn incoming_migrations(&self) -> Result<Vec<IncomingMigration>, ClientError> {
        Ok(self
            .get::<IncomingMigrationList>("/v1/incoming-migrations")
            .await?
            .items)
    }

    /// One of them.
    pub async fn incoming_migration(&self, id: MigrationId) -> Result<IncomingMigration, ClientError> {
        let path = format!("/v1/incoming-migrations/{id}");
        within(ANSWER_TIMEOUT, self.get(&path)).await
    }

    /// Asks whether a machine may come, and for everything to be made ready for it.
    pub async fn receive_migration(&self, wish: &IncomingMigrationWish) -> Result<IncomingMigration, ClientError> {
        within(RECEIVE_TIMEOUT, self.post("/v1/incoming-migrations", wish)).await
    }

    /// Tells that a machine will not come.
    pub async fn give_up_incoming(&self, id: MigrationId) -> Result<(), ClientError> {
        let path = format!("/v1/incoming-migrations/{id}");
        within(ANSWER_TIMEOUT, self.delete(&path)).await
    }

    /// Asks the source of a move what it decided; that decides, if nothing was.
    pub async fn decide_migration(&self, id: MigrationId, token: u64) -> Result<bool, ClientError> {
        let path = format!("/v1/migrations/{id}/decision");
        let asked = DecisionRequest { token };
        let decision: MigrationDecision = within(ANSWER_TIMEOUT, self.post(&path, &asked)).await?;
        Ok(decision.departed)
    }
}
