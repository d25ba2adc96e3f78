//! From a list to a filter the kernel runs.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::kind::ThreadKind;
use super::list::Allowed;
use super::mode::SeccompMode;

/// Why a thread can not be confined.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A list makes no filter.
    #[error("the seccomp filter of {kind} threads can not be made")]
    Compile {
        /// Whose list.
        kind: &'static str,
        /// What is wrong.
        #[source]
        source: BackendError,
    },
    /// The kernel takes no filter.
    #[error("the kernel takes no seccomp filter; it needs CONFIG_SECCOMP_FILTER, or set seccomp = \"off\"")]
    Install {
        /// What it said.
        #[source]
        source: seccompiler::Error,
    },
}

thread_local! {
    /// The kind of this thread, once it has its filter. Read by a signal handler: no initialiser runs at its first use.
    static KIND: Cell<Option<ThreadKind>> = const { Cell::new(None) };
}

/// The kind of the calling thread; none without a filter of its own. Safe in signal handlers.
pub(super) fn kind_of_this_thread() -> Option<ThreadKind> {
    KIND.get()
}

/// Confines the calling thread, for good.
pub(super) fn put_on(kind: ThreadKind, mode: SeccompMode) -> Result<(), FilterError> {
    let action = match mode {
        SeccompMode::Enforce => SeccompAction::Trap,
        SeccompMode::Log => SeccompAction::Log,
        SeccompMode::Off => return Ok(()),
    };
    static PROGRAMS: [OnceLock<BpfProgram>; ThreadKind::ALL.len()] = [const { OnceLock::new() }; ThreadKind::ALL.len()];
    // The index is of the table that the enumeration gives its length.
    let made = PROGRAMS.get(kind.index()).and_then(OnceLock::get);
    let fresh;
    let program = match made {
        Some(program) => program,
        None => {
            fresh = compile(kind, action)?;
            match PROGRAMS.get(kind.index()) {
                Some(place) => place.get_or_init(|| fresh),
                None => &fresh,
            }
        }
    };
    KIND.set(Some(kind));
    // Sets `no_new_privs` as well.
    seccompiler::apply_filter(program).map_err(|source| FilterError::Install { source })
}

fn compile(kind: ThreadKind, action: SeccompAction) -> Result<BpfProgram, FilterError> {
    let failed = |source| FilterError::Compile {
        kind: kind.name(),
        source,
    };
    let rules = Allowed::of(kind).rules().map_err(failed)?;
    SeccompFilter::new(rules, action, SeccompAction::Allow, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(failed)
}

/// Has `clone3` look as if this kernel did not know it, for this thread and all it starts: see the module.
pub(super) fn hide_clone3() -> Result<(), FilterError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let program = SeccompFilter::new(rules, SeccompAction::Allow, absent, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(|source| FilterError::Compile { kind: "all", source })?;
    seccompiler::apply_filter(&program).map_err(|source| FilterError::Install { source })
}
