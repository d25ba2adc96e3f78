//! The open files a machine is made from, sorted by what they are for.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use control::{CreateVm, DiskChain, DiskLayer, FdRole};

/// Files of the machine itself.
#[derive(Debug)]
pub struct MachineFiles {
    /// The kernel.
    pub kernel: File,
    /// The initial RAM file system.
    pub initrd: Option<File>,
    /// The chain of each disk of the specification, in its order.
    pub disks: Vec<ChainFiles>,
    /// One per queue pair of each interface, in the specification's order.
    pub taps: Vec<Vec<OwnedFd>>,
    /// The directory of the saved machine that this one goes on from, where it is not booted.
    pub saved: Option<SavedFiles>,
}

/// Where a saved machine is.
#[derive(Debug)]
pub struct SavedFiles {
    /// The directory.
    pub directory: OwnedFd,
    /// Memory is mapped instead of read.
    pub lazy: bool,
    /// The guest is told that it is a copy.
    pub copy: bool,
}

/// A chain and its files, top first.
#[derive(Debug)]
pub struct ChainFiles(pub Vec<LayerFiles>);

/// One image of a chain and its files.
#[derive(Debug)]
pub struct LayerFiles {
    /// What it is.
    pub layer: DiskLayer,
    /// The image.
    pub image: OwnedFd,
    /// Its data file, where it says that there is one.
    pub data: Option<OwnedFd>,
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
    /// A chain for each disk.
    #[error("{chains} chains came for {disks} disks: send one for each, of at least one layer")]
    Chains {
        /// How many chains came.
        chains: usize,
        /// How many disks the machine has.
        disks: usize,
    },
}

/// Pairs the files of `create` with their roles, and checks them against what its machine needs. Nothing is left over.
pub fn sort(create: &CreateVm, fds: Vec<OwnedFd>) -> Result<(MachineFiles, Directories), FilesError> {
    let (spec, roles) = (&create.machine, &create.fds);
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
    let disks = sort_disks(create, &mut take)?;
    let taps = (0..)
        .zip(spec.nets())
        .map(|(index, net)| {
            (0..u32::from(net.queue_pairs))
                .map(|pair| take(FdRole::Tap { index, pair }))
                .collect()
        })
        .collect::<Result<_, _>>()?;
    let initrd = files.remove(&FdRole::Initrd).map(File::from);
    let mut ways = [(true, true), (true, false), (false, true), (false, false)].into_iter();
    let saved = ways.find_map(|(lazy, copy)| {
        let directory = files.remove(&FdRole::SavedDirectory { lazy, copy })?;
        Some(SavedFiles { directory, lazy, copy })
    });
    if let Some(&role) = files.keys().next() {
        return Err(FilesError::Unused(role));
    }
    let machine = MachineFiles {
        kernel,
        initrd,
        disks,
        taps,
        saved,
    };
    Ok((machine, directories))
}

fn sort_disks(
    create: &CreateVm,
    take: &mut impl FnMut(FdRole) -> Result<OwnedFd, FilesError>,
) -> Result<Vec<ChainFiles>, FilesError> {
    let (chains, disks) = (create.chains.len(), create.machine.disks().len());
    if chains != disks || create.chains.iter().any(|chain| chain.layers.is_empty()) {
        return Err(FilesError::Chains { chains, disks });
    }
    let sort_one = |(index, chain): (u32, &DiskChain)| {
        let layers = (0..).zip(&chain.layers).map(|(place, layer)| {
            let image = take(FdRole::Disk { index, layer: place })?;
            let data = layer
                .data_file
                .as_ref()
                .map(|_| take(FdRole::DiskData { index, layer: place }));
            Ok(LayerFiles {
                layer: layer.clone(),
                image,
                data: data.transpose()?,
            })
        });
        layers.collect::<Result<_, _>>().map(ChainFiles)
    };
    (0..).zip(&create.chains).map(sort_one).collect()
}

/// Pairs a chain with its files, which came in the order of its layers, each image followed by its data file.
pub fn pair(chain: &DiskChain, fds: Vec<OwnedFd>) -> Result<ChainFiles, FilesError> {
    let count = FilesError::Count {
        files: fds.len(),
        roles: chain.file_count(),
    };
    if chain.layers.is_empty() || fds.len() != chain.file_count() {
        return Err(count);
    }
    let mut fds = fds.into_iter();
    let mut layers = Vec::new();
    for layer in &chain.layers {
        let Some(image) = fds.next() else { return Err(count) };
        let data = layer.data_file.as_ref().and_then(|_| fds.next());
        layers.push(LayerFiles {
            layer: layer.clone(),
            image,
            data,
        });
    }
    Ok(ChainFiles(layers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{disks, layer, net, spec};

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn full() -> Vec<FdRole> {
        vec![
            FdRole::Kernel,
            FdRole::Disk { index: 0, layer: 0 },
            FdRole::Disk { index: 1, layer: 0 },
            FdRole::Disk { index: 1, layer: 1 },
            FdRole::DiskData { index: 1, layer: 1 },
            FdRole::Tap { index: 0, pair: 0 },
            FdRole::Tap { index: 0, pair: 1 },
            FdRole::LogDirectory,
            FdRole::RunDirectory,
        ]
    }

    fn create(roles: &[FdRole]) -> CreateVm {
        let with_data = DiskLayer {
            data_file: Some("data".to_owned()),
            ..layer("base")
        };
        let chain = |layers: Vec<DiskLayer>| DiskChain { layers };
        CreateVm {
            machine: spec(|parts| {
                parts.disks = disks(2);
                parts.nets = vec![net(2)];
            }),
            chains: vec![chain(vec![layer("raw")]), chain(vec![layer("top"), with_data])],
            fds: roles.to_vec(),
            console_log_max_bytes: 1,
            console_log_keep: 1,
        }
    }

    fn try_sort(roles: &[FdRole]) -> Result<MachineFiles, FilesError> {
        sort(&create(roles), roles.iter().map(|_| null()).collect()).map(|(files, _)| files)
    }

    #[test]
    fn a_full_set_is_sorted() {
        let files = try_sort(&full()).unwrap();
        assert_eq!(
            (files.disks[0].0.len(), files.disks[1].0.len(), files.taps[0].len()),
            (1, 2, 2)
        );
        assert!(files.disks[1].0[1].data.is_some());
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
        roles.push(FdRole::Disk { index: 2, layer: 0 });
        assert_eq!(
            try_sort(&roles).unwrap_err(),
            FilesError::Unused(FdRole::Disk { index: 2, layer: 0 })
        );
        let mut roles = full();
        roles.push(FdRole::Kernel);
        assert_eq!(try_sort(&roles).unwrap_err(), FilesError::Doubled(FdRole::Kernel));
        assert_eq!(
            sort(&create(&[FdRole::Kernel]), vec![]).unwrap_err(),
            FilesError::Count { files: 0, roles: 1 }
        );
    }

    #[test]
    fn disks_without_their_chains_are_refused() {
        let mut short = create(&full());
        short.chains.pop();
        let chains = |request: &CreateVm| sort(request, full().iter().map(|_| null()).collect()).unwrap_err();
        assert_eq!(chains(&short), FilesError::Chains { chains: 1, disks: 2 });
        short.chains.push(DiskChain { layers: vec![] });
        assert_eq!(chains(&short), FilesError::Chains { chains: 2, disks: 2 });
        assert!(pair(&DiskChain { layers: vec![] }, vec![]).is_err());
        assert!(pair(&create(&[]).chains[1], vec![null(), null()]).is_err());
        assert_eq!(
            pair(&create(&[]).chains[1], vec![null(), null(), null()])
                .unwrap()
                .0
                .len(),
            2
        );
    }
}
