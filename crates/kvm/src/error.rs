//! The error of a single KVM call.

use std::io;

/// A KVM call that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("kvm: cannot {what}")]
pub struct CallError {
    /// What was to be done, as "set the registers of vcpu 0".
    pub what: String,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl CallError {
    /// For `map_err` on a `kvm-ioctls` result.
    pub(crate) fn on(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        |errno| Self {
            what: what.into(),
            source: io::Error::from_raw_os_error(errno.errno()),
        }
    }

    /// KVM answered without an error number but did not do it.
    pub(crate) fn unfit(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            source: io::Error::new(io::ErrorKind::Unsupported, "KVM does not accept the value"),
        }
    }
}
