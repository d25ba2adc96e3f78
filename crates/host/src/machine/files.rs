//! The files a machine is made from, opened on its behalf.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use api_types::Vm;
use control::{DiskChain, FdRole};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use spec::{DiskSource, MachineSpec, Problems, VmPlan};

use super::boot::boot_parts;
use super::disks::{self, LaterLock, Locking};
use super::files_error::FilesError;
use super::resumption;

use crate::context::Context;
use crate::failure::chain;

/// What a machine process is handed.
pub(crate) struct Handed {
    /// What the disks consist of.
    pub(crate) chains: Vec<DiskChain>,
    /// Files and what they are for.
    pub(crate) fds: Vec<(FdRole, OwnedFd)>,
    /// Disks that are still to be locked.
    pub(crate) later: Vec<LaterLock>,
}

impl Handed {
    /// The machine goes on from where it was saved.
    pub(crate) fn is_saved(&self) -> bool {
        let mut roles = self.fds.iter().map(|(role, _)| role);
        roles.any(|role| matches!(role, FdRole::SavedDirectory { .. }))
    }
}

/// Everything a machine process is handed. Disks are locked as long as anybody has them open. Blocks.
pub(crate) fn open(
    context: &Context,
    vm: &Vm,
    plan: &VmPlan,
    machine: &MachineSpec,
    run_dir: &Path,
    locking: Locking,
) -> Result<Handed, FilesError> {
    let mut files = open_boot(context, vm, plan)?;
    let (mut chains, mut later) = (Vec::new(), Vec::new());
    for disk in disks::open(context, vm, plan, locking)? {
        chains.push(disk.chain);
        files.extend(disk.fds);
        later.extend(disk.later);
    }
    for ((index, wish), net) in (0..).zip(&plan.nets).zip(machine.nets()) {
        let failed = |source| FilesError::Tap {
            name: wish.tap.clone(),
            source,
        };
        if !interface_exists(&wish.tap) {
            return Err(FilesError::NoInterface { name: wish.tap.clone() });
        }
        let queues = tap::open(&wish.tap, net.queue_pairs).map_err(failed)?;
        files.extend(
            (0..)
                .zip(queues)
                .map(|(pair, queue)| (FdRole::Tap { index, pair }, queue)),
        );
    }
    let log_dir = context.log_dir(vm.id);
    files.push((FdRole::LogDirectory, make_and_open_dir(&log_dir)?));
    files.push((FdRole::RunDirectory, make_and_open_dir(run_dir)?));
    files.extend(resumption::open(context, vm.id)?);
    check_count(&chains, files.len())?;
    Ok(Handed {
        chains,
        fds: files,
        later,
    })
}

/// Fails if these are more files than a process can be handed.
fn check_count(chains: &[DiskChain], files: usize) -> Result<(), FilesError> {
    let chains = chains.iter().map(|chain| chain.layers.len());
    match (0..).zip(chains).max_by_key(|(_, layers)| *layers) {
        Some((disk, layers)) if files > control::FDS_MAX => Err(FilesError::TooMany { files, disk, layers }),
        _ => Ok(()),
    }
}

/// Tries to open what the user names, so that mistakes are told when the machine is made and not only when it starts. Blocks.
pub(crate) fn probe(context: &Context, plan: &VmPlan) -> Result<(), Problems> {
    let mut problems = Problems::new();
    for (field, path) in [("boot.kernel", &plan.boot.kernel), ("boot.initrd", &plan.boot.initrd)] {
        if let Some(path) = path
            && let Err(error) = open_named(context, field, path)
        {
            problems.add(field, chain(&error));
        }
    }
    for disk in &plan.disks {
        // A volume may be filled still.
        if let DiskSource::Path { .. } = disk.source
            && let Err(error) = disks::resolve(context, disk)
        {
            problems.add(error.field().unwrap_or("disks"), chain(&error));
        }
    }
    problems.into_result(())
}

fn open_boot(context: &Context, vm: &Vm, plan: &VmPlan) -> Result<Vec<(FdRole, OwnedFd)>, FilesError> {
    let image = boot_parts(context, vm)?;
    let mut files = Vec::new();
    match (&plan.boot.kernel, image.kernel) {
        (Some(path), _) => files.push((FdRole::Kernel, open_named(context, "boot.kernel", path)?.into())),
        (None, Some(kernel)) => files.push((FdRole::Kernel, kernel.into())),
        (None, None) => return Err(FilesError::NoKernel),
    }
    match (&plan.boot.initrd, image.initrd) {
        (Some(path), _) => files.push((FdRole::Initrd, open_named(context, "boot.initrd", path)?.into())),
        (None, Some(initrd)) if plan.boot.kernel.is_none() => files.push((FdRole::Initrd, initrd.into())),
        _ => {}
    }
    Ok(files)
}

/// Opens a file a user names: beneath one of the allowed directories, whatever links are on the way.
fn open_named(context: &Context, field: &str, path: &Path) -> Result<File, FilesError> {
    let named = |source: Errno| match source {
        Errno::XDEV => FilesError::LeadsOut {
            field: field.to_owned(),
            path: path.to_owned(),
        },
        source => FilesError::Named {
            field: field.to_owned(),
            path: path.to_owned(),
            source: source.into(),
        },
    };
    let file = File::from(open_beneath(&context.limits.file_roots, path, OFlags::RDONLY).map_err(named)?);
    let kind = file.metadata().map_err(|source| FilesError::Named {
        field: field.to_owned(),
        path: path.to_owned(),
        source,
    })?;
    if !kind.file_type().is_file() {
        return Err(FilesError::WrongKind {
            field: field.to_owned(),
            path: path.to_owned(),
            wanted: "regular file",
        });
    }
    Ok(file)
}

fn open_beneath(roots: &[PathBuf], path: &Path, access: OFlags) -> Result<OwnedFd, Errno> {
    let mut told = Errno::XDEV;
    for root in roots {
        let Ok(rest) = path.strip_prefix(root) else { continue };
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|dir| {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                rustix::fs::openat2(&dir, rest, flags, Mode::empty(), resolve)
            });
        match opened {
            Ok(file) => return Ok(file),
            Err(errno) => told = errno,
        }
    }
    Err(told)
}

pub(super) fn interface_exists(name: &str) -> bool {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)
        .and_then(|socket| rustix::net::netdevice::name_to_index(&socket, name))
        .is_ok()
}

fn make_and_open_dir(path: &Path) -> Result<OwnedFd, FilesError> {
    let failed = |source: io::Error| FilesError::Own {
        path: path.to_owned(),
        source,
    };
    if !fs::exists(path).map_err(failed)? {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn too_many_files_are_told_before_they_are_sent() {
        let layer = control::DiskLayer {
            name: String::new(),
            format: spec::DiskFormat::Qcow2,
            writable: false,
            data_file: None,
        };
        let chains = [3, 200, 60].map(|layers| DiskChain {
            layers: vec![layer.clone(); layers],
        });
        assert!(check_count(&chains, control::FDS_MAX).is_ok());
        let error = check_count(&chains, control::FDS_MAX + 1).unwrap_err().to_string();
        assert!(error.contains("disk 1 alone has 200"), "{error}");
    }

    #[test]
    fn files_are_opened_beneath_their_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("files");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/disk"), "x").unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink(dir.path().join("secret"), root.join("absolute")).unwrap();
        symlink("../secret", root.join("relative")).unwrap();
        symlink("sub/disk", root.join("inside")).unwrap();
        let roots = [root.clone()];
        let open = |name: &str| open_beneath(&roots, &root.join(name), OFlags::RDWR).map(drop);
        assert_eq!(open("sub/disk"), Ok(()));
        assert_eq!(open("inside"), Ok(()));
        assert_eq!(open("absolute"), Err(Errno::XDEV));
        assert_eq!(open("relative"), Err(Errno::XDEV));
        assert_eq!(open("sub/../../secret"), Err(Errno::XDEV));
        assert_eq!(open("none"), Err(Errno::NOENT));
        assert_eq!(
            open_beneath(&roots, Path::new("/etc/passwd"), OFlags::RDONLY).map(drop),
            Err(Errno::XDEV)
        );
    }
}
