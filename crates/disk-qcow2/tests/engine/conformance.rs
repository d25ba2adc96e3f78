//! The conformance suite on images that qemu-img made, and qemu-img's check of what it left.

use std::sync::{Arc, Mutex};

use disk::conformance::{self, SIZE_BYTES};
use disk::{Disk, InMemory};

use crate::{Lab, block_on, open};
use disk_qcow2::Qcow2Disk;

/// Runs the suite on images with these creation options.
fn conforms(options: &str) {
    let Some(lab) = Lab::new() else { return };
    let options = if options.is_empty() {
        String::new()
    } else {
        format!("-o {options}")
    };
    lab.run(&format!("qemu-img create -f qcow2 {options} empty.qcow2 {SIZE_BYTES}"));
    let empty = lab.load("empty.qcow2").contents();
    let made: Mutex<Vec<(InMemory, Arc<Qcow2Disk>)>> = Mutex::default();
    let make = || -> Arc<dyn Disk> {
        let file = InMemory::holding(empty.clone(), disk::Access::ReadWrite);
        let disk = open(&file, None);
        made.lock().unwrap().push((file, Arc::clone(&disk)));
        disk
    };
    conformance::all(make, |case| {
        block_on(async {
            case.await;
            let last = made.lock().unwrap().last().map(|(_, disk)| Arc::clone(disk));
            last.unwrap().close().await.unwrap();
        });
        let (file, disk) = made.lock().unwrap().pop().unwrap();
        drop(disk);
        lab.check(&file, false);
    });
}

#[test]
fn version_3_conforms() {
    conforms("");
}

#[test]
fn version_2_conforms() {
    conforms("compat=0.10");
}

#[test]
fn small_clusters_conform() {
    conforms("cluster_size=512");
    conforms("cluster_size=4k,refcount_bits=1");
}

#[test]
fn large_clusters_conform() {
    conforms("cluster_size=2M,refcount_bits=64");
}

#[test]
fn subclusters_conform() {
    conforms("extended_l2=on");
    conforms("extended_l2=on,cluster_size=16k,refcount_bits=8");
}

#[test]
fn lazy_refcounts_conform() {
    conforms("lazy_refcounts=on,refcount_bits=2,cluster_size=8k");
}

#[test]
fn preallocated_images_conform() {
    conforms("preallocation=metadata");
}
