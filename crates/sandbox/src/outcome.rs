//! What became of a confined program.

use std::io;
use std::path::PathBuf;

/// How a confined program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It returned this exit status; 0 is success.
    Exited(i32),
    /// This signal killed it: 9 may be the kernel short of memory, 24 the CPU limit, 25 the file size limit.
    Signalled(i32),
    /// It was killed because its deadline had passed.
    DeadlinePassed,
    /// It was killed because the caller asked for it.
    Stopped,
}

/// A part of the confinement the running kernel did not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// No landlock: the program could open any file its user may open.
    Landlock,
    /// No network namespace: the program could reach the host's network.
    Network,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Landlock => {
                "file access was not confined: this kernel has no landlock (add it to the lsm= boot parameter)"
            }
            Self::Network => "network access was not confined: network namespaces are not allowed for this user",
        })
    }
}

/// What became of a confined program.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The last 4 KiB it wrote to standard error, lossily decoded, trimmed.
    pub stderr_tail: String,
    /// Parts of the confinement that were not in force while it ran.
    pub gaps: Vec<Gap>,
}

impl Outcome {
    /// True for exit status 0.
    pub fn succeeded(&self) -> bool {
        self.end == End::Exited(0)
    }
}

/// Why a confined program could not be run, or watched, to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A path the program shall read or write cannot be opened.
    #[error("cannot prepare access to {path} for a confined program")]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel or landlock said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel has landlock and refused the rules.
    #[error("cannot build the file access rules for a confined program")]
    Rules(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The program does not exist at its path.
    #[error("program {0} does not exist")]
    NoProgram(PathBuf),
    /// The process could not be created or confined.
    #[error("cannot start confined program {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its output or end could not be watched; it was killed.
    #[error("lost sight of confined program {program}; it was killed")]
    Watch {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
