//! Credentials for registries, from a file as `docker login`, `podman login` and `skopeo login` write it (containers-auth.json(5)).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::Reference;

/// Longest file read, bytes; real ones have some kilobytes.
const FILE_MAX: u64 = 1 << 20;
/// How `docker login` calls Docker's own registry.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// What references call it.
const DOCKER_HUB: &str = "docker.io";

/// Why there are no credentials, where a file was to have them.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read the registry credentials {path}; check registry_auth_file in the configuration")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not what `docker login` writes.
    #[error("the registry credentials {path} are malformed: {problem}; log in again to write them anew")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without what it holds.
        problem: String,
    },
}

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({:?})", self.user)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// Who to be for `reference`: the entry of the longest part of `host/repository` that the file has, none if it has none.
pub(crate) fn find(path: &Path, reference: &Reference) -> Result<Option<Login>, CredentialsError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| CredentialsError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    choose(&bytes, reference).map_err(|problem| CredentialsError::Malformed {
        path: path.to_path_buf(),
        problem,
    })
}

fn choose(bytes: &[u8], reference: &Reference) -> Result<Option<Login>, String> {
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("they are longer than {FILE_MAX} bytes"));
    }
    // The error of the parser may cite a secret.
    let body: Body = serde_json::from_slice(bytes)
        .map_err(|error| format!("line {}, column {} is not as expected", error.line(), error.column()))?;
    let full = format!("{}/{}", reference.registry(), reference.repository());
    let mut name = full.as_str();
    loop {
        if let Some(entry) = body.auths.get(name) {
            return login(name, entry);
        }
        match name.rsplit_once('/') {
            Some((shorter, _)) => name = shorter,
            None => break,
        }
    }
    let hub = body
        .auths
        .get(DOCKER_HUB_KEY)
        .filter(|_| reference.registry() == DOCKER_HUB);
    hub.map_or(Ok(None), |entry| login(DOCKER_HUB_KEY, entry))
}

fn login(name: &str, entry: &Entry) -> Result<Option<Login>, String> {
    if !entry.identitytoken.is_empty() {
        return Err(format!(
            "{name} has an identity token, which is not supported; log in with user and password"
        ));
    }
    if !entry.username.is_empty() {
        return Ok(Some(Login {
            user: entry.username.clone(),
            password: entry.password.clone(),
        }));
    }
    // Where a helper keeps the secrets, the entry is there and empty.
    if entry.auth.is_empty() {
        return Err(format!(
            "{name} has no credentials here (a helper may keep them, which is not supported)"
        ));
    }
    let decoded = STANDARD
        .decode(&entry.auth)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|text| text.split_once(':')) {
        Some((user, password)) => Ok(Some(Login {
            user: user.to_owned(),
            // Some writers fill up with NULs.
            password: password.trim_end_matches('\0').to_owned(),
        })),
        None => Err(format!("{name} has an auth that is not base64 of user:password")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str, reference: &str) -> Result<Option<(String, String)>, String> {
        let found = choose(text.as_bytes(), &reference.parse().unwrap())?;
        Ok(found.map(|login| (login.user, login.password)))
    }

    fn entry(user: &str) -> String {
        format!(
            r#"{{"auth": "{}"}}"#,
            STANDARD.encode(format!("{user}:secret:with:colons"))
        )
    }

    #[test]
    fn the_longest_name_wins() {
        let (host, team) = (entry("host"), entry("team"));
        let text = format!(r#"{{"auths": {{"quay.io": {host}, "quay.io/team": {team}}}, "credsStore": "x"}}"#);
        let user = |reference| asked(&text, reference).unwrap().map(|(user, _)| user);
        assert_eq!(user("quay.io/team/disk:1").as_deref(), Some("team"));
        assert_eq!(user("quay.io/teams/disk:1").as_deref(), Some("host"));
        assert_eq!(user("quay.io:5000/team/disk:1"), None);
        let found = asked(&text, "quay.io/other:1").unwrap().unwrap();
        assert_eq!(found.1, "secret:with:colons");
    }

    #[test]
    fn docker_hub_has_a_name_of_its_own() {
        let text = format!(r#"{{"auths": {{"{DOCKER_HUB_KEY}": {}}}}}"#, entry("me"));
        assert_eq!(asked(&text, "docker.io/library/debian:12").unwrap().unwrap().0, "me");
        assert_eq!(asked(&text, "quay.io/library/debian:12").unwrap(), None);
    }

    #[test]
    fn what_cannot_be_used_is_told_without_secrets() {
        for text in [
            r#"{"auths": {"q.io": {"auth": "c2VjcmV0"}}}"#,
            r#"{"auths": {"q.io": {"auth": "!"}}}"#,
            r#"{"auths": {"q.io": {}}}"#,
            r#"{"auths": {"q.io": {"identitytoken": "secret"}}}"#,
            r#"{"auths": {"q.io": {"auth": 5}}}"#,
            r#"{"auths": "secret"}"#,
            "",
        ] {
            let problem = asked(text, "q.io/a:1").unwrap_err();
            assert!(!problem.contains("secret") && !problem.contains("c2Vj"), "{problem}");
        }
        let plain = r#"{"auths": {"q.io": {"username": "u", "password": "p"}}}"#;
        assert_eq!(asked(plain, "q.io/a:1").unwrap(), Some(("u".into(), "p".into())));
        let login = Login {
            user: "u".into(),
            password: "p".into(),
        };
        assert_eq!(format!("{login:?}"), "Login(\"u\")");
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error() {
        let missing = find(Path::new("/nonexistent/auth.json"), &"q.io/a:1".parse().unwrap());
        assert!(matches!(missing, Err(CredentialsError::Read { .. })));
    }
}
