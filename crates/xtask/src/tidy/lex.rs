//! Rust source with comments, strings and test items blanked out, line numbers kept: enough to look for words without being fooled.

/// Replaces comments and the content of string and character literals by spaces.
pub(super) fn blank(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = skip(bytes, at);
        if end > at {
            for byte in out.iter_mut().take(end).skip(at).filter(|byte| **byte != b'\n') {
                *byte = b' ';
            }
            at = end;
        } else {
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The end of the comment or literal that starts at `at`; `at` when none does.
fn skip(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    let word_before = at
        .checked_sub(1)
        .and_then(|i| bytes.get(i))
        .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n),
        [b'/', b'*', ..] => block_comment(bytes, at),
        [b'"', ..] => quoted(bytes, at + 1, b'"'),
        [b'r', b'"' | b'#', ..] | [b'b', b'r', b'"' | b'#', ..] if !word_before => raw(bytes, at),
        // A lifetime has no closing quote two or more bytes on, a character literal has.
        [b'\'', b'\\', ..] => quoted(bytes, at + 1, b'\''),
        [b'\'', first, ..] => {
            let width = match first {
                0x00..=0x7f => 1,
                0xc0..=0xdf => 2,
                0xe0..=0xef => 3,
                _ => 4,
            };
            if rest.get(1 + width) == Some(&b'\'') {
                at + width + 2
            } else {
                at
            }
        }
        _ => at,
    }
}

fn block_comment(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0;
    let mut here = at;
    while here < bytes.len() {
        match bytes.get(here..here + 2) {
            Some(b"/*") => (depth, here) = (depth + 1, here + 2),
            Some(b"*/") if depth == 1 => return here + 2,
            Some(b"*/") => (depth, here) = (depth - 1, here + 2),
            _ => here += 1,
        }
    }
    bytes.len()
}

fn quoted(bytes: &[u8], from: usize, end: u8) -> usize {
    let mut here = from;
    while let Some(byte) = bytes.get(here) {
        match byte {
            b'\\' => here += 2,
            byte if *byte == end => return here + 1,
            _ => here += 1,
        }
    }
    bytes.len()
}

/// `r"…"`, `r#"…"#`, `br…`; a raw identifier (`r#match`) is none.
fn raw(bytes: &[u8], at: usize) -> usize {
    let mut here = at + if bytes.get(at) == Some(&b'b') { 2 } else { 1 };
    let opening = here;
    while bytes.get(here) == Some(&b'#') {
        here += 1;
    }
    let hashes = here - opening;
    if bytes.get(here) != Some(&b'"') {
        return at;
    }
    here += 1;
    while here < bytes.len() {
        let closes = bytes.get(here) == Some(&b'"')
            && bytes
                .get(here + 1..here + 1 + hashes)
                .is_some_and(|after| after.iter().all(|b| *b == b'#'));
        if closes {
            return here + 1 + hashes;
        }
        here += 1;
    }
    bytes.len()
}

/// Blanks the items behind `#[cfg(test)]` in already blanked source. Gives the source and the number of lines left out.
pub(super) fn without_tests(blanked: &str) -> (String, usize) {
    let mut lines: Vec<String> = blanked.lines().map(str::to_owned).collect();
    let mut dropped = 0;
    let mut at = 0;
    while at < lines.len() {
        if !lines
            .get(at)
            .is_some_and(|line| line.trim_start().starts_with("#[cfg(test)]") || line.contains("#[cfg(all(test"))
        {
            at += 1;
            continue;
        }
        let (mut depth, mut opened) = (0usize, false);
        while let Some(line) = lines.get_mut(at) {
            for byte in line.bytes() {
                match byte {
                    b'{' => (depth, opened) = (depth + 1, true),
                    b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            let ends = (opened && depth == 0) || (!opened && line.trim_end().ends_with(';'));
            line.clear();
            dropped += 1;
            at += 1;
            if ends {
                break;
            }
        }
    }
    (lines.join("\n"), dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_kept() {
        let source = "let a = \"unsafe\"; // unsafe\n/* a /* b */ unsafe */ let c = 'x'; fn f<'a>(x: &'a str) {} let r = r#\"un\"safe\"#; '\\''";
        let blanked = blank(source);
        assert!(!blanked.contains("unsafe") && !blanked.contains("safe"), "{blanked}");
        assert!(blanked.contains("fn f<'a>(x: &'a str) {}"), "{blanked}");
        assert_eq!(blanked.lines().count(), source.lines().count());
    }

    #[test]
    fn test_items_are_left_out() {
        let (source, dropped) = without_tests(
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod more;\n",
        );
        assert!(source.contains("fn a") && source.contains("fn c") && !source.contains("fn b"));
        assert_eq!(dropped, 6);
    }
}
