//! Credentials for web sources.

use std::fmt;

use reqwest::RequestBuilder;
use url::Url;

/// Who asks. Sent to the source's own scheme, host and port only, never behind a redirect to another. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// HTTP basic authentication (RFC 7617).
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A bearer token (RFC 6750).
    Bearer {
        /// The token.
        token: String,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Bearer { .. } => "Bearer(…)",
        })
    }
}

impl Login {
    pub(crate) fn put_on(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic { user, password } => request.basic_auth(user, Some(password)),
            Self::Bearer { token } => request.bearer_auth(token),
        }
    }

    /// Takes user and password out of `url`; none if it has none. Fails if they are no text.
    pub(crate) fn take_from(url: &mut Url) -> Result<Option<Self>, ()> {
        if url.username().is_empty() && url.password().is_none() {
            return Ok(None);
        }
        let user = decoded(url.username())?;
        let password = decoded(url.password().unwrap_or_default())?;
        url.set_username("")?;
        url.set_password(None)?;
        Ok(Some(Self::Basic { user, password }))
    }
}

/// Undoes the percent-encoding of a part of a URL.
fn decoded(text: &str) -> Result<String, ()> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte.unwrap_or_default()).to_digit(16);
            let (high, low) = (digit(rest.next()).ok_or(())?, digit(rest.next()).ok_or(())?);
            bytes.push(u8::try_from(high * 16 + low).map_err(|_| ())?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_leave_the_url() {
        let mut url = Url::parse("https://me%40home:p%C3%A4ss%25@mirror.test/a").unwrap();
        let login = Login::take_from(&mut url).unwrap().unwrap();
        assert_eq!(url.as_str(), "https://mirror.test/a");
        let expected = Login::Basic {
            user: "me@home".to_owned(),
            password: "päss%".to_owned(),
        };
        assert!(login == expected);
        assert_eq!(format!("{login:?}"), "Basic(…)");
        assert_eq!(Login::take_from(&mut url), Ok(None));
        let mut broken = Url::parse("https://a%zz:b@mirror.test/").unwrap();
        assert_eq!(Login::take_from(&mut broken), Err(()));
    }
}
