//! One field of a cron schedule as a set of numbers.

/// What a field can hold, and the names its numbers have.
pub(crate) struct FieldRule {
    /// What it is called in messages.
    pub(crate) name: &'static str,
    /// Smallest number.
    pub(crate) min: u8,
    /// Largest number.
    pub(crate) max: u8,
    /// Names of the numbers, beginning with `min`.
    pub(crate) names: &'static [&'static str],
}

/// The five fields, in the order in which they are written (crontab(5)).
pub(crate) const FIELDS: [FieldRule; 5] = [
    FieldRule {
        name: "minute",
        min: 0,
        max: 59,
        names: &[],
    },
    FieldRule {
        name: "hour",
        min: 0,
        max: 23,
        names: &[],
    },
    FieldRule {
        name: "day of month",
        min: 1,
        max: 31,
        names: &[],
    },
    FieldRule {
        name: "month",
        min: 1,
        max: 12,
        names: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    // 7 is Sunday too.
    FieldRule {
        name: "day of week",
        min: 0,
        max: 7,
        names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

impl FieldRule {
    /// The numbers of `text`, one bit each; else what is wrong with it.
    pub(crate) fn parse(&self, text: &str) -> Result<u64, String> {
        let mut set = 0;
        for part in text.split(',') {
            set |= self.part(part)?;
        }
        Ok(set)
    }

    /// `*`, `a`, `a-b`, each also with `/step`; `a/step` runs to the end.
    fn part(&self, part: &str) -> Result<u64, String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(self.step(step)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (self.min, self.last()),
            Some((first, last)) => (self.number(first)?, self.number(last)?),
            None => {
                let first = self.number(range)?;
                (first, if step.is_some() { self.last().max(first) } else { first })
            }
        };
        if first > last {
            return Err(format!(
                "{} {range:?} runs backwards: write two ranges with a comma",
                self.name
            ));
        }
        let bits = (first..=last).step_by(usize::from(step.unwrap_or(1)));
        Ok(bits.fold(0, |set, bit| set | 1 << bit))
    }

    /// The end of `*`: Saturday, not the second Sunday.
    fn last(&self) -> u8 {
        if self.max == 7 { 6 } else { self.max }
    }

    fn step(&self, text: &str) -> Result<u8, String> {
        let step = plain(text).filter(|step| (1..=self.max).contains(step));
        step.ok_or_else(|| format!("{} step {text:?}; take 1 to {}", self.name, self.max))
    }

    fn number(&self, text: &str) -> Result<u8, String> {
        let lower = text.to_ascii_lowercase();
        let named = self.names.iter().zip(self.min..).find(|(name, _)| **name == lower);
        let number = named.map(|(_, number)| number).or_else(|| plain(text));
        let number = number.filter(|number| (self.min..=self.max).contains(number));
        number.ok_or_else(|| {
            let names = match (self.names.first(), self.names.last()) {
                (Some(first), Some(last)) => format!(", or {first} to {last}"),
                _ => String::new(),
            };
            let shown: String = text.chars().take(20).collect();
            format!("{} {shown:?}; take {} to {}{names}", self.name, self.min, self.max)
        })
    }
}

/// One or two digits.
fn plain(text: &str) -> Option<u8> {
    let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}
