//! What a call can come back with.

use std::path::PathBuf;

use api_types::{ErrorCode, ProblemBody};

/// Why TLS with another daemon is not possible from here.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Not a URL of a daemon.
    #[error("{0:?} is no URL of a karatd: it takes https://HOST:PORT")]
    Url(String),
    /// A file can not be read, or holds something else.
    #[error("{path:?} can not be read as PEM with {what}")]
    File {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds nothing of its kind.
    #[error("{0:?} holds no certificate")]
    Empty(PathBuf),
    /// The key does not fit the certificate, or either is of a kind that is not used.
    #[error("the certificate and its key can not be used")]
    Unfit(#[source] rustls::Error),
}

/// Why a call was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("karatd does not answer on {}: is the service running (systemctl status karatd), and may you open the socket (group karat)?", .socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// The network's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody on another host answers, or not as who was expected.
    #[error(
        "karatd does not answer on {url}: is the address right, and does it serve TLS there ([tls] of its karat.toml)?"
    )]
    RemoteUnreachable {
        /// What was tried.
        url: String,
        /// The network's own error, or that of TLS.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The own certificate, its key or the authorities can not be used.
    #[error("TLS can not be used")]
    Credentials(#[source] RemoteError),
    /// The daemon understood and refused.
    #[error("{}", describe(.0))]
    Refused(Box<ProblemBody>),
    /// The answer was no answer of this API.
    #[error("karatd answered {what} in a way this program does not know: are both of the same version?")]
    Unexpected {
        /// Which call.
        what: String,
        /// What was wrong with the answer, where there is more to say.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The connection broke off in the middle.
    #[error("the connection to karatd broke off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ClientError {
    /// The daemon's code, where it refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(problem) => Some(problem.code),
            _ => None,
        }
    }
}

fn describe(problem: &ProblemBody) -> String {
    let mut text = problem.detail.clone();
    for error in &problem.errors {
        text.push_str("\n  ");
        text.push_str(&error.field);
        text.push_str(": ");
        text.push_str(&error.message);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use api_types::Problem;

    #[test]
    fn every_field_of_a_refusal_is_told() {
        let problem = |field: &str, message: &str| Problem {
            field: field.to_owned(),
            message: message.to_owned(),
        };
        let body = ProblemBody {
            type_uri: "about:blank".to_owned(),
            title: "Invalid".to_owned(),
            status: 422,
            code: ErrorCode::InvalidSpec,
            detail: "the machine can not be made".to_owned(),
            errors: vec![problem("cpus", "take 1 to 64"), problem("memory", "too large")],
        };
        let told = ClientError::Refused(Box::new(body)).to_string();
        assert_eq!(
            told,
            "the machine can not be made\n  cpus: take 1 to 64\n  memory: too large"
        );
    }
}
