//! Images from web servers.

use std::sync::Arc;

use url::Url;

use crate::agent::{Agent, shown};
use crate::error::SourceError;
use crate::fetch;
use crate::identity::Identity;
use crate::login::Login;
use crate::opened::Opened;
use crate::target::Target;

/// Longest URL taken, bytes; as long as servers commonly accept.
const URL_MAX: usize = 8 << 10;

/// One object on a web server.
#[derive(Debug, Clone)]
pub struct WebSource {
    agent: Agent,
    target: Arc<Target>,
}

impl WebSource {
    /// Takes a URL with scheme `http` or `https`. User and password within it are taken out and used as `login`, unless one is given.
    /// Nothing is asked yet, but the agent's address policy is checked as far as the URL alone tells.
    ///
    /// # Errors
    /// [`SourceError::Location`] if it is no such URL, [`SourceError::Refused`] if the policy denies it.
    pub fn new(agent: &Agent, url: &str, login: Option<Login>) -> Result<Self, SourceError> {
        let wrong = |text: &str, problem: String| SourceError::Location {
            text: text.to_owned(),
            problem,
        };
        if url.len() > URL_MAX {
            let start: String = url.chars().take(64).collect();
            return Err(wrong(
                &format!("{start}…"),
                format!("it is longer than {URL_MAX} bytes"),
            ));
        }
        // What cannot be parsed may still hold a password: it is not repeated.
        let mut url = Url::parse(url).map_err(|error| {
            wrong(
                "the URL",
                format!("{error}; it has to look like https://mirror.example.org/image.qcow2"),
            )
        })?;
        let within = Login::take_from(&mut url).map_err(|()| {
            wrong(
                &shown(&url),
                "user and password in it are not UTF-8 in percent encoding".to_owned(),
            )
        })?;
        url.set_fragment(None);
        agent.policy.check_url(&url).map_err(|refusal| SourceError::Refused {
            url: shown(&url),
            refusal,
        })?;
        let login = login.or(within);
        Ok(Self {
            agent: agent.clone(),
            target: Arc::new(Target::Web { url, login }),
        })
    }

    /// Opens it at byte `offset`. With `expected`, from an earlier [`Opened::identity`] or of known length only, it has to be that
    /// object.
    ///
    /// # Errors
    /// [`SourceError`], when its own tries are used up.
    pub async fn open_at(&self, offset: u64, expected: Option<&Identity>) -> Result<Opened, SourceError> {
        fetch::open(&self.agent, &self.target, offset, expected).await
    }

    /// Asks for its length and validators only (`HEAD`).
    ///
    /// # Errors
    /// [`SourceError`], when its own tries are used up.
    pub async fn probe(&self) -> Result<Identity, SourceError> {
        fetch::probe(&self.agent, &self.target).await
    }

    /// The URL without its secrets.
    #[must_use]
    pub fn location(&self) -> String {
        self.target.shown()
    }
}
