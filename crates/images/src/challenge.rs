//! How a registry says that it wants to know who asks (`WWW-Authenticate`, RFC 9110 §11.6.1).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Longest header that is looked at, bytes; real ones have some hundred.
const HEADER_MAX: usize = 4 << 10;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from `realm` (distribution project, "token authentication specification").
    Bearer {
        /// URL of who gives tokens.
        realm: String,
        /// Whom the token is for.
        service: Option<String>,
    },
}

impl Challenge {
    /// The first one known here.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).into_iter();
        values
            .filter_map(|value| value.to_str().ok())
            .filter(|text| text.len() <= HEADER_MAX)
            .find_map(Self::parse)
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        let mut rest = rest;
        while let Some((name, value, behind)) = parameter(rest) {
            if name.eq_ignore_ascii_case("realm") {
                realm = Some(value);
            } else if name.eq_ignore_ascii_case("service") {
                service = Some(value);
            }
            rest = behind;
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// The next `name=value` or `name="value"`, and what is behind it.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.split_once('=')?;
    let name = name.trim_matches([' ', ',', '\t']);
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, behind) = rest.split_once(',').unwrap_or((rest, ""));
        return Some((name, value.trim().to_owned(), behind));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((name, value, quoted.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(chars.next()?.1),
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_registries_send() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#;
        for (text, expected) in [
            (hub, bearer("https://auth.docker.io/token", Some("registry.docker.io"))),
            (r#"bearer service=a , realm="x\"y""#, bearer("x\"y", Some("a"))),
            ("Basic realm=\"test\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            ("Bearer service=a", None),
            ("Bearer realm=\"unfinished", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn takes_the_first_that_is_known() {
        let mut headers = HeaderMap::new();
        assert_eq!(Challenge::of(&headers), None);
        let long = format!("Bearer realm=\"{}\"", "x".repeat(HEADER_MAX));
        for text in ["Negotiate", &long, "Basic realm=\"a\"", "Bearer realm=b"] {
            headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        }
        assert_eq!(Challenge::of(&headers), Some(Challenge::Basic));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "(Bearer |basic )?[a-z=\",\\\\ é]{0,40}") {
            let _ = Challenge::parse(&text);
        }
    }
}
