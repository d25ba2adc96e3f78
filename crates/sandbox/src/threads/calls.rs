//! Which system calls each kind of thread may make.

use super::groups;
use super::kind::ThreadKind;
use super::list::Allowed;

impl Allowed {
    /// The list of `kind`.
    pub(super) fn of(kind: ThreadKind) -> Self {
        let mut list = Self::default();
        if matches!(kind, ThreadKind::Vcpu | ThreadKind::Steward) {
            // The most frequent of them all comes first, so that it is found first.
            list.ioctls(groups::KVM, &[groups::KVM_RUN]);
        }
        match kind {
            ThreadKind::Steward => {
                // Whoever it starts can have no call that it has not.
                for kind in ThreadKind::ALL {
                    list.of_kind(kind);
                }
            }
            kind => list.of_kind(kind),
        }
        list
    }

    fn of_kind(&mut self, kind: ThreadKind) {
        self.add(groups::EVERY_THREAD);
        groups::conditional(self);
        match kind {
            ThreadKind::Control | ThreadKind::Console => {
                groups::sockets(self);
                self.add(groups::DIRECTORIES);
                groups::open_beneath(self);
            }
            ThreadKind::Steward => {
                self.add(groups::DIRECTORIES);
                groups::open_beneath(self);
                groups::start_threads(self);
            }
            ThreadKind::StateDriver => {
                self.add(groups::RINGS);
                self.add(groups::FILES);
                self.add(groups::DIRECTORIES);
                self.add(groups::MEMORY);
                self.ioctls(groups::KVM, groups::KVM_BUILD);
                self.ioctls(groups::KVM, groups::KVM_DEVICES);
                groups::devices(self);
                groups::open_beneath(self);
                groups::read_host(self);
                groups::start_threads(self);
            }
            ThreadKind::Vcpu => {
                self.add(groups::DEVICES_OF_A_VCPU);
                self.ioctls(groups::KVM, groups::KVM_DEVICES);
                self.ioctls(groups::KVM, groups::KVM_LOOK);
                groups::devices(self);
                groups::kick_handler(self);
            }
            ThreadKind::QueueWorker => {
                self.add(groups::FILES);
                self.add(&[libc::SYS_io_uring_enter]);
                self.ioctls(groups::KVM, groups::KVM_DEVICES);
                groups::devices(self);
            }
            ThreadKind::Transfer => self.add(groups::FILES),
            ThreadKind::Offload | ThreadKind::Watch => {}
            ThreadKind::DiskJob => {
                self.add(groups::RINGS);
                self.add(groups::FILES);
                groups::devices(self);
                groups::read_host(self);
                groups::start_threads(self);
            }
            ThreadKind::Migration => {
                groups::sockets(self);
                self.add(groups::STREAMS);
                self.add(groups::ABSENT_MEMORY);
                self.ioctls(groups::USERFAULTFD.0, groups::USERFAULTFD.1);
                groups::read_host(self);
                groups::start_threads(self);
            }
        }
    }
}
