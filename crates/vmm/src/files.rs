//! The open files a machine is made from, sorted by what they are for.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use control::FdRole;
use spec::MachineSpec;

/// Files of the machine itself.
#[derive(Debug)]
pub struct MachineFiles {
    /// The kernel.
    pub kernel: File,
    /// The initial RAM file system.
    pub initrd: Option<File>,
    /// One per disk of the specification, in its order.
    pub disks: Vec<File>,
    /// One per queue pair of each interface, in the specification's order.
    pub taps: Vec<Vec<OwnedFd>>,
}

/// Directories of the process.
#[derive(Debug)]
pub struct Directories {
    /// Where `console.log` is.
    pub log: OwnedFd,
    /// Where the report goes.
    pub run: OwnedFd,
}

/// Why files can not be sorted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FilesError {
    /// A role for each file, a file for each role.
    #[error("{files} files came for {roles} roles: send one file per role, in the same message")]
    Count {
        /// How many files came.
        files: usize,
        /// How many roles were named.
        roles: usize,
    },
    /// A role was given twice.
    #[error("two files came for {0:?}: send one")]
    Doubled(FdRole),
    /// A role the machine needs was not given.
    #[error("no file came for {0:?}: the machine needs one")]
    Missing(FdRole),
    /// A role the machine has no use for.
    #[error("a file came for {0:?}, which the machine does not have")]
    Unused(FdRole),
}

/// Pairs `fds` with their `roles`, and checks them against what `spec` needs. Nothing is left over.
pub fn sort(
    spec: &MachineSpec,
    roles: &[FdRole],
    fds: Vec<OwnedFd>,
) -> Result<(MachineFiles, Directories), FilesError> {
    if fds.len() != roles.len() {
        return Err(FilesError::Count {
            files: fds.len(),
            roles: roles.len(),
        });
    }
    let mut files = HashMap::new();
    for (&role, fd) in roles.iter().zip(fds) {
        if files.insert(role, fd).is_some() {
            return Err(FilesError::Doubled(role));
        }
    }
    let mut take = |role| files.remove(&role).ok_or(FilesError::Missing(role));
    let directories = Directories {
        log: take(FdRole::LogDirectory)?,
        run: take(FdRole::RunDirectory)?,
    };
    let kernel = take(FdRole::Kernel)?.into();
    let disks = (0..)
        .zip(spec.disks())
        .map(|(index, _)| take(FdRole::Disk { index }).map(File::from))
        .collect::<Result<_, _>>()?;
    let taps = (0..)
        .zip(spec.nets())
        .map(|(index, net)| {
            (0..u32::from(net.queue_pairs))
                .map(|pair| take(FdRole::Tap { index, pair }))
                .collect()
        })
        .collect::<Result<_, _>>()?;
    let initrd = files.remove(&FdRole::Initrd).map(File::from);
    if let Some(&role) = files.keys().next() {
        return Err(FilesError::Unused(role));
    }
    let machine = MachineFiles {
        kernel,
        initrd,
        disks,
        taps,
    };
    Ok((machine, directories))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn full() -> Vec<FdRole> {
        vec![
            FdRole::Kernel,
            FdRole::Disk { index: 0 },
            FdRole::Disk { index: 1 },
            FdRole::Tap { index: 0, pair: 0 },
            FdRole::Tap { index: 0, pair: 1 },
            FdRole::LogDirectory,
            FdRole::RunDirectory,
        ]
    }

    fn try_sort(roles: &[FdRole]) -> Result<MachineFiles, FilesError> {
        let spec = spec(|parts| {
            parts.disks = crate::testing::disks(2);
            parts.nets = vec![crate::testing::net(2)];
        });
        sort(&spec, roles, roles.iter().map(|_| null()).collect()).map(|(files, _)| files)
    }

    #[test]
    fn a_full_set_is_sorted() {
        let files = try_sort(&full()).unwrap();
        assert_eq!((files.disks.len(), files.taps[0].len()), (2, 2));
        assert!(files.initrd.is_none());
    }

    #[test]
    fn too_few_too_many_and_twice_are_told_apart() {
        for missing in 0..full().len() {
            let mut roles = full();
            let role = roles.remove(missing);
            assert_eq!(try_sort(&roles).unwrap_err(), FilesError::Missing(role));
        }
        let mut roles = full();
        roles.push(FdRole::Disk { index: 2 });
        assert_eq!(
            try_sort(&roles).unwrap_err(),
            FilesError::Unused(FdRole::Disk { index: 2 })
        );
        let mut roles = full();
        roles.push(FdRole::Kernel);
        assert_eq!(try_sort(&roles).unwrap_err(), FilesError::Doubled(FdRole::Kernel));
        let spec = spec(|_| {});
        assert_eq!(
            sort(&spec, &[FdRole::Kernel], vec![]).unwrap_err(),
            FilesError::Count { files: 0, roles: 1 }
        );
    }
}
