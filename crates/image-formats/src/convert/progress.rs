//! What `qemu-img -p` prints, `    (12.34/100%)` and a return, as it trickles in.

/// Longest number that is kept, bytes.
const NUMBER_MAX: usize = 8;

/// Reads percentages.
#[derive(Debug, Default)]
pub(super) struct Percent {
    /// The number being read; `None` outside of brackets.
    number: Option<String>,
}

impl Percent {
    /// Takes the next piece; `progress` gets bytes of `total`.
    pub(super) fn feed(&mut self, piece: &[u8], total: u64, progress: &mut dyn FnMut(u64)) {
        for &byte in piece {
            match (byte, &mut self.number) {
                (b'(', _) => self.number = Some(String::new()),
                (b'0'..=b'9' | b'.', Some(number)) if number.len() < NUMBER_MAX => number.push(char::from(byte)),
                (b'/', Some(number)) => {
                    if let Some(share) = hundredths(number) {
                        progress(total / 10_000 * share + total % 10_000 * share / 10_000);
                    }
                    self.number = None;
                }
                (_, Some(_)) => self.number = None,
                (_, None) => {}
            }
        }
    }
}

/// `12.34` as hundredths, of at most 100.
fn hundredths(number: &str) -> Option<u64> {
    let (whole, fraction) = number.split_once('.')?;
    let value = whole
        .parse::<u64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(fraction.get(..2)?.parse().ok()?)?;
    (value <= 10_000).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_read_however_they_are_cut() {
        let mut seen = Vec::new();
        let mut meter = Percent::default();
        for piece in [
            "    (0.0",
            "0/100%)\r    (12.34/1",
            "00%)\r (100.00/100%)\r\n(999.99/100%) (x/y) (-1.00/",
            "((",
        ] {
            meter.feed(piece.as_bytes(), 1_000_000, &mut |bytes| seen.push(bytes));
        }
        assert_eq!(seen, [0, 123_400, 1_000_000]);
    }
}
