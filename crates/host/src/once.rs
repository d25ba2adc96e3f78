//! Requests that are carried out once, however often they are sent.
//!
//! A sender that got no answer does not know whether its request was carried out. With a key it may send it again: what was
//! carried out is not carried out again, the first answer is given once more. Keys are in the registry, so that this holds
//! over a restart of the daemon too. Only what changed something keeps its key; a request that was refused may be sent again.

use std::collections::HashSet;
use std::sync::PoisonError;

use api_types::ErrorCode;
use sha2::{Digest, Sha256};

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Change, KeptAnswer, RegistryError};

/// Longest key, bytes.
const KEY_MAX: usize = 255;

/// What to do with a request that has a key.
pub enum Once {
    /// Carry it out, and tell how it ended.
    First(FirstTime),
    /// It was carried out: this was the answer.
    Again(KeptAnswer),
}

/// A request under a key that is being carried out.
pub struct FirstTime {
    host: Host,
    key: String,
}

impl Host {
    /// Whether a request is to be carried out. `request` is all that tells it from others.
    pub async fn once(&self, key: &str, request: &[u8]) -> Result<Once, Failure> {
        if key.is_empty() || key.len() > KEY_MAX || !key.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            let text = format!("Idempotency-Key: take 1 to {KEY_MAX} printable ASCII characters, such as a UUID");
            return Err(Failure::new(ErrorCode::InvalidRequest, text));
        }
        if !self.keys().insert(key.to_owned()) {
            return Err(under_way(key));
        }
        // From here on it gives the key up when it is dropped.
        let first = FirstTime {
            host: self.clone(),
            key: key.to_owned(),
        };
        let digest: String = Sha256::digest(request)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let wanted = key.to_owned();
        let seen = self
            .registry()
            .change(move |change| look(change, &wanted, &digest))
            .await?;
        Ok(match seen {
            Some(answer) => Once::Again(answer),
            None => Once::First(first),
        })
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn look(change: &Change<'_>, key: &str, request: &str) -> Result<Option<KeptAnswer>, Failure> {
    let Some(seen) = change.key(key)? else {
        change.take_key(key, request)?;
        return Ok(None);
    };
    if seen.request != request {
        let text = format!("Idempotency-Key {key:?} was used for another request; take a new key for each");
        return Err(Failure::new(ErrorCode::KeyReused, text));
    }
    seen.answer.map(Some).ok_or_else(|| {
        let text = format!(
            "the request with Idempotency-Key {key:?} came to no answer, by an error or since the daemon was restarted: look \
             whether it was carried out, and take a new key"
        );
        Failure::new(ErrorCode::WrongState, text)
    })
}

fn under_way(key: &str) -> Failure {
    let text = format!("the request with Idempotency-Key {key:?} is being carried out; ask again in a moment");
    Failure::new(ErrorCode::WrongState, text)
}

impl FirstTime {
    /// It was carried out.
    pub async fn done(self, answer: KeptAnswer) -> Result<(), Failure> {
        let key = self.key.clone();
        let kept = self
            .host
            .registry()
            .change(move |change| change.keep_answer(&key, &answer));
        Ok(kept.await?)
    }

    /// Nothing was changed: the key may be used again.
    pub async fn refused(self) -> Result<(), Failure> {
        let forget = || {
            let key = self.key.clone();
            self.host.registry().change(move |change| change.forget_key(&key))
        };
        match forget().await {
            // On a full disk the first change fails, and frees what was put aside for the next.
            Err(RegistryError::Database(_)) => Ok(forget().await?),
            forgotten => Ok(forgotten?),
        }
    }
}

impl Drop for FirstTime {
    fn drop(&mut self) {
        self.host.keys().remove(&self.key);
    }
}
