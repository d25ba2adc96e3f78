//! What a vCPU has to know of its kernel to be saved.

use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm};

use crate::error::CallError;

/// Bytes of the XSAVE area that `struct kvm_xsave` always has.
pub(crate) const XSAVE_BYTES: usize = 4096;

/// Bytes of the XSAVE area on this kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct XsaveSize {
    /// At least [`XSAVE_BYTES`], and whole words.
    pub(crate) bytes: usize,
    /// `KVM_GET_XSAVE2` is there.
    pub(crate) extended: bool,
}

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct Savable {
    /// Numbers of the MSRs that a guest's state is in.
    pub(crate) msrs: Arc<[u32]>,
    pub(crate) xsave: XsaveSize,
}

impl Savable {
    /// Asks the kernel.
    pub(crate) fn of(kvm: &Kvm) -> Result<Self, CallError> {
        let list = kvm
            .get_msr_index_list()
            .map_err(CallError::on("ask which msrs there are"))?;
        let bytes = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            msrs: list.as_slice().into(),
            xsave: XsaveSize {
                bytes: bytes.max(XSAVE_BYTES).next_multiple_of(4),
                extended: bytes > 0,
            },
        })
    }
}
