//! Confinement of the processes Karat starts.
//!
//! [`ConfinedCommand`] runs a program that reads what strangers wrote (a disk image, say) so that a fault in it harms
//! nothing but the one file it was told to write:
//!
//! | taken away | by |
//! |---|---|
//! | files | landlock: system directories and named paths for reading, named paths for writing, nothing else |
//! | network | an empty network namespace, and landlock's TCP rules where the kernel has them |
//! | privileges | every capability dropped, `no_new_privs` |
//! | descriptors | all but the three standard ones; standard input is empty |
//! | environment | cleared, but for `LC_ALL=C` |
//! | resources | limits on CPU time, address space, file size, descriptors; no core dumps |
//! | time | a deadline, and death with the thread that started it |
//!
//! What the running kernel cannot do (landlock missing or switched off) is not fatal: the outcome names the [`Gap`]s.
//!
//! [`confine_threads`] confines the threads of a process of our own that a guest talks to: see `threads`.

mod child;
mod command;
mod frames;
mod outcome;
mod rules;
mod threads;

pub use command::{ConfinedCommand, Limits};
pub use frames::return_offsets;
pub use outcome::{End, Gap, Outcome, RunError};
pub use threads::{
    ConfineError, FilterError, LateFilter, NewThread, SeccompMode, ThreadKind, UnknownMode, Violation,
    confine_this_thread, confine_threads, run_by_steward,
};
