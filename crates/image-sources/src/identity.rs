//! What tells whether an object is still the same one.

use reqwest::header::{CONTENT_LENGTH, DATE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED};
use serde::{Deserialize, Serialize};

/// Longest validator kept, bytes: it is stored with the image and sent back.
const VALIDATOR_MAX: usize = 1024;
/// A `Last-Modified` date proves sameness only if the object was left alone for this long (RFC 9110 §8.8.2.2), seconds.
const SETTLED_AFTER_S: u64 = 1;

/// Length and validators of an object, as its server states them. Kept by whoever wants to continue a fetch later or to ask
/// whether there is anything new.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Length in bytes; none if the server does not tell before the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_bytes: Option<u64>,
    /// Entity tag as in the header, with quotes and `W/`; of a local file what its inode says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// `Last-Modified` as in the header, if it was old enough to mean something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
}

/// How an object compares with what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// A validator says that it is the same.
    Same,
    /// It is another one; the text says which validator differs.
    Changed(String),
    /// It is another one, or one of both lengths is wrong: no validator differs.
    Length {
        /// Bytes it had, or should have.
        expected_bytes: u64,
        /// Bytes it has.
        found_bytes: u64,
    },
    /// Same length or none, and no validator to compare: nobody can tell.
    Unknown,
}

impl Identity {
    pub(crate) fn of_headers(headers: &HeaderMap, length_bytes: Option<u64>) -> Self {
        let etag = text(headers, &ETAG).filter(|tag| is_entity_tag(tag));
        let modified = text(headers, &LAST_MODIFIED).filter(|modified| {
            let Ok(modified) = httpdate::parse_http_date(modified) else {
                return false;
            };
            match text(headers, &DATE).map(|date| httpdate::parse_http_date(&date)) {
                Some(Ok(date)) => date
                    .duration_since(modified)
                    .is_ok_and(|age| age.as_secs() >= SETTLED_AFTER_S),
                _ => true,
            }
        });
        Self {
            length_bytes,
            etag,
            modified,
        }
    }

    /// Compares this, the object expected, with the one `found`.
    #[must_use]
    pub fn compare(&self, found: &Self) -> Comparison {
        let tags = self.etag.as_deref().zip(found.etag.as_deref());
        if let Some((before, now)) = tags
            && weak(before) != weak(now)
        {
            return Comparison::Changed(format!("its entity tag was {before} and is {now}"));
        }
        let dates = self.modified.as_deref().zip(found.modified.as_deref());
        if let Some((before, now)) = dates
            && tags.is_none()
            && before != now
        {
            return Comparison::Changed(format!("it was last modified {before} and now {now}"));
        }
        match self.length_bytes.zip(found.length_bytes) {
            Some((expected_bytes, found_bytes)) if expected_bytes != found_bytes => Comparison::Length {
                expected_bytes,
                found_bytes,
            },
            _ if tags.is_some() || dates.is_some() => Comparison::Same,
            _ => Comparison::Unknown,
        }
    }

    /// Takes over what `found`, the same object, tells beyond this.
    pub(crate) fn complete(&mut self, found: Self) {
        self.length_bytes = self.length_bytes.or(found.length_bytes);
        self.etag = self.etag.take().or(found.etag);
        self.modified = self.modified.take().or(found.modified);
    }

    /// True if there is a validator to compare.
    pub(crate) fn is_comparable(&self) -> bool {
        self.etag.is_some() || self.modified.is_some()
    }

    /// The value for `If-Range`: a strong validator, or none (RFC 9110 §13.1.5).
    pub(crate) fn if_range(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|tag| !tag.starts_with("W/"));
        strong.or(self.modified.as_deref())
    }
}

/// A tag without the mark of weakness: two that differ only there name the same content for our purposes.
fn weak(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

fn is_entity_tag(text: &str) -> bool {
    let quoted = weak(text);
    quoted.len() >= 2 && quoted.starts_with('"') && quoted.ends_with('"')
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    (text.len() <= VALIDATOR_MAX).then(|| text.to_owned())
}

/// The length that the answer to a question for headers alone states.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.parse().ok()
}

/// A `Content-Range` header (RFC 9110 §14.4), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentRange {
    /// First and last byte; none in an answer that the range cannot be had.
    pub(crate) span: Option<(u64, u64)>,
    /// Length of the whole object; none if the server does not say.
    pub(crate) total: Option<u64>,
}

impl ContentRange {
    /// Reads `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.split_at_checked(5)?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (span, total) = rest.trim_start().split_once('/')?;
        let total = match total.trim() {
            "*" => None,
            digits => Some(digits.parse().ok()?),
        };
        let span = match span.trim() {
            "*" => None,
            span => {
                let (first, last) = span.split_once('-')?;
                Some((first.parse().ok()?, last.parse().ok()?))
            }
        };
        let consistent = match (span, total) {
            (Some((first, last)), Some(total)) => first <= last && last < total,
            (Some((first, last)), None) => first <= last,
            (None, total) => total.is_some(),
        };
        consistent.then_some(Self { span, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn identity(length: u64, etag: &str, modified: &str) -> Identity {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Identity {
            length_bytes: Some(length),
            etag: text(etag),
            modified: text(modified),
        }
    }

    #[test]
    fn the_entity_tag_decides_then_the_length_then_the_date() {
        let changed = |a: &Identity, b: &Identity| matches!(a.compare(b), Comparison::Changed(_));
        let base = identity(10, "\"a\"", "Mon, 01 Jan 2024 00:00:00 GMT");
        assert!(changed(&base, &identity(10, "\"b\"", "Mon, 01 Jan 2024 00:00:00 GMT")));
        let longer = Comparison::Length {
            expected_bytes: 10,
            found_bytes: 11,
        };
        assert_eq!(base.compare(&identity(11, "\"a\"", "")), longer);
        assert_eq!(identity(10, "", "").compare(&identity(11, "", "")), longer);
        assert_eq!(
            base.compare(&identity(10, "W/\"a\"", "Tue, 02 Jan 2024 00:00:00 GMT")),
            Comparison::Same
        );
        let dated = identity(10, "", "Mon, 01 Jan 2024 00:00:00 GMT");
        assert_eq!(base.compare(&dated), Comparison::Same);
        assert!(changed(&dated, &identity(10, "", "Tue, 02 Jan 2024 00:00:00 GMT")));
        assert_eq!(dated.compare(&identity(10, "\"a\"", "")), Comparison::Unknown);
        assert_eq!(identity(10, "", "").compare(&base), Comparison::Unknown);
    }

    #[test]
    fn only_strong_validators_go_into_if_range() {
        assert_eq!(identity(1, "\"a\"", "d").if_range(), Some("\"a\""));
        assert_eq!(identity(1, "W/\"a\"", "d").if_range(), Some("d"));
        assert_eq!(identity(1, "W/\"a\"", "").if_range(), None);
    }

    #[test]
    fn a_date_of_this_very_second_proves_nothing() {
        let headers = |date: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(LAST_MODIFIED, HeaderValue::from_static("Mon, 01 Jan 2024 00:00:10 GMT"));
            headers.insert(DATE, HeaderValue::from_static(date));
            Identity::of_headers(&headers, None).modified.is_some()
        };
        assert!(!headers("Mon, 01 Jan 2024 00:00:10 GMT"));
        assert!(!headers("Mon, 01 Jan 2024 00:00:09 GMT"));
        assert!(headers("Mon, 01 Jan 2024 00:00:11 GMT"));
    }

    #[test]
    fn content_ranges() {
        let parse = ContentRange::parse;
        let range = |span, total| Some(ContentRange { span, total });
        assert_eq!(parse("bytes 5-9/10"), range(Some((5, 9)), Some(10)));
        assert_eq!(parse("Bytes 5-9/*"), range(Some((5, 9)), None));
        assert_eq!(parse("bytes */10"), range(None, Some(10)));
        for text in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes */*",
            "items 1-2/3",
            "bytes a-b/c",
            "bytes -1-2/3",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
