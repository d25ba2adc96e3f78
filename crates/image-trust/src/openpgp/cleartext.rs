//! The cleartext signature framework (RFC 9580 §7): what exactly was signed, and the signature behind it.
//!
//! Read strictly, because the ways around these signatures are all in the reading: nothing may stand in front of the header or
//! behind the signature, no armour header but `Hash:` is taken, and a line that begins with a dash must be escaped.

use super::OpenPgpError;

const BEGIN: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
const BEGIN_SIGNATURE: &[u8] = b"-----BEGIN PGP SIGNATURE-----";
const END_SIGNATURE: &[u8] = b"-----END PGP SIGNATURE-----";

/// A clear-signed document taken apart, not yet verified.
#[derive(Debug, PartialEq, Eq)]
pub struct ClearSigned<'a> {
    /// What was signed: dashes unescaped, no trailing blanks, lines joined by line feeds, none at the end.
    pub text: Vec<u8>,
    /// The armoured signature.
    pub signature: &'a [u8],
}

impl<'a> ClearSigned<'a> {
    /// Whether `document` claims to be clear-signed.
    pub fn is_claimed_by(document: &[u8]) -> bool {
        document.trim_ascii_start().starts_with(BEGIN)
    }

    /// Takes `document` apart.
    ///
    /// # Errors
    ///
    /// When it deviates from the form.
    pub fn parse(document: &'a [u8]) -> Result<Self, OpenPgpError> {
        let fail = |problem| Err(OpenPgpError::NotClearSigned { problem });
        let document = document.trim_ascii();
        let mut lines = Lines { rest: Some(document) };
        if lines.next().map(<[u8]>::trim_ascii_end) != Some(BEGIN) {
            return fail("it does not begin with a PGP SIGNED MESSAGE line");
        }
        for line in lines.by_ref() {
            let line = line.trim_ascii_end();
            if line.is_empty() {
                break;
            }
            if !line.starts_with(b"Hash: ") {
                return fail("it has a header other than Hash");
            }
        }
        let mut text = Vec::with_capacity(document.len());
        let mut first = true;
        let signature = loop {
            let Some(before) = lines.rest else {
                return fail("it has no signature");
            };
            let Some(line) = lines.next() else {
                return fail("it has no signature");
            };
            let line = line.trim_ascii_end();
            if line == BEGIN_SIGNATURE {
                break before;
            }
            let line = match line {
                [b'-', b' ', rest @ ..] => rest,
                [b'-'] => &[],
                [b'-', ..] => return fail("a line of it begins with an unescaped dash"),
                line => line,
            };
            if !std::mem::take(&mut first) {
                text.push(b'\n');
            }
            text.extend_from_slice(line);
        };
        let ends = Lines { rest: Some(signature) }
            .filter(|line| line.trim_ascii_end() == END_SIGNATURE)
            .count();
        if !signature.ends_with(END_SIGNATURE) || ends != 1 {
            return fail("something stands behind its signature, or the signature has no end");
        }
        Ok(Self { text, signature })
    }
}

struct Lines<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = end.and_then(|end| rest.get(..end)).unwrap_or(rest);
        self.rest = end.and_then(|end| rest.get(end + 1..));
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----\n\nabc=\n-----END PGP SIGNATURE-----";

    fn text(document: &str) -> Result<String, &'static str> {
        match ClearSigned::parse(document.as_bytes()) {
            Ok(parsed) => {
                assert_eq!(parsed.signature, SIGNATURE.as_bytes());
                Ok(String::from_utf8(parsed.text).unwrap())
            }
            Err(OpenPgpError::NotClearSigned { problem }) => Err(problem),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn unescapes_and_trims() {
        let head = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n";
        for (body, expected) in [
            ("one\ntwo\n", "one\ntwo"),
            ("one \t\r\ntwo\n", "one\ntwo"),
            ("- -dash\n- - x\nFrom me\n", "-dash\n- x\nFrom me"),
            ("\n\nend\n\n", "\n\nend\n"),
            ("", ""),
        ] {
            assert_eq!(
                text(&format!("{head}{body}{SIGNATURE}\n\n")),
                Ok(expected.to_owned()),
                "{body:?}"
            );
        }
        let plain = format!("\n-----BEGIN PGP SIGNED MESSAGE-----\n\nx\n{SIGNATURE}");
        assert_eq!(text(&plain), Ok("x".to_owned()));
    }

    #[test]
    fn refuses_every_deviation() {
        let good = format!("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nx\n{SIGNATURE}\n");
        assert!(text(&good).is_ok());
        for bad in [
            String::new(),
            "x".to_owned(),
            format!("smuggled\n{good}"),
            format!("{good}smuggled\n"),
            format!("{good}{good}"),
            format!("{good}{SIGNATURE}"),
            good.replace("Hash: SHA512", "Comment: x"),
            good.replace("Hash: SHA512", "sha256:00  smuggled"),
            good.replace("\nx\n", "\n-x\n"),
            good.replace("\nx\n", "\n-----BEGIN PGP MESSAGE-----\n"),
            good.replace("-----END PGP SIGNATURE-----\n", ""),
            good.replace("-----BEGIN PGP SIGNATURE-----\n", ""),
            good.split_at(60).0.to_owned(),
        ] {
            assert!(text(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn takes_time_proportional_to_length() {
        let document = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\n\n{}{SIGNATURE}",
            "\n".repeat(1 << 20)
        );
        assert_eq!(text(&document).unwrap().len(), (1 << 20) - 1);
    }
}
