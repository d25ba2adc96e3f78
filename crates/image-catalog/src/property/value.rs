//! What a property's value may be.

use crate::fault::Note;

/// Values a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueRule {
    /// One of these, exactly.
    Choice(&'static [&'static str]),
    /// A whole number, decimal, without sign.
    Integer {
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// A UUID (RFC 9562), with hyphens.
    Uuid,
    /// The id of an image record: a UUID too. Whether that record exists is asked when a machine is made.
    ImageId,
    /// vCPU numbers: `0,1,2` or `0-3,6`.
    CpuList,
    /// A name of the table of distributions; others are kept with a note, other spellings of listed ones are refused.
    OsDistro,
    /// Any printable text.
    Text {
        /// Longest, bytes.
        max: usize,
    },
}

/// Largest vCPU number in a list, exclusive.
const CPU_LIMIT: u32 = 64;

/// Distributions by the name to write, each with spellings that are not to be used.
const DISTROS: &[(&str, &[&str])] = &[
    ("arch", &["archlinux", "org.archlinux"]),
    ("centos", &["org.centos"]),
    ("debian", &["org.debian"]),
    ("fedora", &["org.fedora", "org.fedoraproject"]),
    ("freebsd", &["org.freebsd"]),
    ("gentoo", &["org.gentoo"]),
    ("mandrake", &["mandrakelinux"]),
    ("mandriva", &["mandrivalinux"]),
    ("mes", &["mandrivaent", "mandrivaes"]),
    ("msdos", &["ms-dos"]),
    ("netbsd", &["org.netbsd"]),
    ("netware", &["novell"]),
    ("openbsd", &["org.openbsd"]),
    ("opensolaris", &["org.opensolaris"]),
    ("opensuse", &["suse", "org.opensuse"]),
    ("rhel", &["redhat", "com.redhat"]),
    ("sled", &["com.suse"]),
    ("ubuntu", &["com.ubuntu", "org.ubuntu", "canonical"]),
    ("windows", &["com.microsoft.server"]),
];

/// The listed name behind `text`, be it the name itself or one of the spellings not to be used.
fn os_distro_of(text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    let is = |(name, others): &&(&'static str, &[&str])| *name == lower || others.contains(&lower.as_str());
    DISTROS.iter().find(is).map(|(name, _)| *name)
}

/// A whole number without sign, blanks or surplus zeroes.
pub(crate) fn number(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| canonical && digits)
}

/// The vCPUs of a list as a set of bits, or `None` where the text is no list or names one twice.
pub(crate) fn cpu_list(text: &str) -> Option<u64> {
    let mut set = 0_u64;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= CPU_LIMIT {
            return None;
        }
        for cpu in first..=last {
            let bit = 1_u64 << cpu;
            if set & bit != 0 {
                return None;
            }
            set |= bit;
        }
    }
    Some(set)
}

impl ValueRule {
    /// Whether `value` is one of the values; else what would be.
    pub fn check(self, value: &str) -> Result<(), String> {
        let fits = match self {
            Self::Choice(values) => values.contains(&value),
            Self::Integer { min, max } => number(value).is_some_and(|n| (min..=max).contains(&n)),
            Self::Uuid | Self::ImageId => value.len() == 36 && uuid::Uuid::try_parse(value).is_ok(),
            Self::CpuList => cpu_list(value).is_some(),
            Self::OsDistro => return check_distro(value),
            Self::Text { max } => value.len() <= max,
        };
        if fits {
            Ok(())
        } else {
            Err(format!("{}; take {self}", quoted(value)))
        }
    }

    /// A remark on a value that was accepted.
    pub(crate) fn remark(self, field: &str, value: &str) -> Option<Note> {
        (self == Self::OsDistro && os_distro_of(value).is_none()).then(|| Note {
            code: "value_unlisted",
            field: field.to_owned(),
            message: format!(
                "{} is in no list of distributions; it is kept and shapes nothing",
                quoted(value)
            ),
        })
    }
}

/// A value as a message shows it: not longer than a line.
fn quoted(value: &str) -> String {
    const SHOWN: usize = 40;
    if value.chars().count() <= SHOWN {
        return format!("{value:?}");
    }
    format!("{:?}…", value.chars().take(SHOWN).collect::<String>())
}

fn check_distro(value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err("empty; take the distribution's name in lower case, as debian".to_owned());
    }
    match os_distro_of(value) {
        Some(name) if name != value => Err(format!("{}; write {name}", quoted(value))),
        _ if value.bytes().any(|b| b.is_ascii_uppercase()) => Err(format!("{}; write it in lower case", quoted(value))),
        _ => Ok(()),
    }
}

impl std::fmt::Display for ValueRule {
    /// What to write, as the end of a sentence.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Choice(values) => write!(f, "{}", values.join(", ")),
            Self::Integer { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Uuid => write!(f, "a UUID"),
            Self::ImageId => write!(f, "the id of an image, a UUID"),
            Self::CpuList => write!(f, "vCPU numbers below {CPU_LIMIT}, each once, as 0-3,6"),
            Self::OsDistro => write!(f, "the distribution's name in lower case"),
            Self::Text { max } => write!(f, "up to {max} bytes of text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn distributions_have_one_spelling() {
        assert_eq!(DISTROS.len(), 19);
        for (name, others) in DISTROS {
            assert_eq!(ValueRule::OsDistro.check(name), Ok(()));
            for other in *others {
                let told = ValueRule::OsDistro.check(other).unwrap_err();
                assert!(told.ends_with(&format!("write {name}")), "{told}");
            }
        }
        for wrong in ["Debian", "freeBSD", "SuSE", "NetWare", "Alpine", ""] {
            assert!(ValueRule::OsDistro.check(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ValueRule::OsDistro.check("alpine"), Ok(()));
        assert!(ValueRule::OsDistro.remark("properties.os_distro", "alpine").is_some());
        assert!(ValueRule::OsDistro.remark("properties.os_distro", "debian").is_none());
    }

    #[test]
    fn numbers_and_lists_have_one_way_to_be_written() {
        assert_eq!((number("0"), number("64")), (Some(0), Some(64)));
        for wrong in ["", "01", "+1", "-1", " 1", "1.0", "4294967296", "١"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
        assert_eq!(cpu_list("0-2,5"), Some(0b10_0111));
        for wrong in ["", ",", "0,0", "0-2,1", "3-1", "64", "0-4294967295", "0 ,1", "a"] {
            assert_eq!(cpu_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_rule_says_what_it_takes() {
        let told = ValueRule::Choice(&["yes", "no"]).check(&"x".repeat(5000)).unwrap_err();
        assert!(told.ends_with("take yes, no") && told.len() < 100, "{told}");
        assert!(ValueRule::Uuid.check("{67e55044-10b1-426f-9247-bb680e5fe0c8}").is_err());
        assert!(ValueRule::Uuid.check("67e5504410b1426f9247bb680e5fe0c8").is_err());
        assert!(ValueRule::ImageId.check("67e55044-10b1-426f-9247-bb680e5fe0c8").is_ok());
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_panics(text in ".{0,80}") {
            for spec in crate::known_keys() {
                let _ = spec.value.check(&text);
            }
        }
    }
}
