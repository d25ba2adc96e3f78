//! What becomes of forbidden calls.

use std::fmt;
use std::str::FromStr;

/// What becomes of a system call that a thread's list lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SeccompMode {
    /// It is not made, and the process ends by SIGSYS, having said which call it was and of which kind of thread.
    #[default]
    Enforce,
    /// It is made, and the kernel logs it (`type=1326` in its log, with the number of the call). For finding what a list
    /// lacks.
    Log,
    /// There are no filters.
    Off,
}

/// A word that names no mode.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is none of enforce, log and off")]
pub struct UnknownMode(String);

impl SeccompMode {
    /// Its name in configurations and on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Log => "log",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for SeccompMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SeccompMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        [Self::Enforce, Self::Log, Self::Off]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| UnknownMode(text.to_owned()))
    }
}
