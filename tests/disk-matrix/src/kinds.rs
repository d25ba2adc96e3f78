//! All kinds of images of the matrix.

use crate::kind::{Extra, Fill, Kind, MIB};
use crate::stack::Format::{Qcow2, Raw};

/// Every kind once; names are unique.
pub fn all() -> Vec<Kind> {
    let mut kinds = Vec::new();
    kinds.extend(cluster_sizes());
    kinds.extend(refcount_widths());
    kinds.extend(subclusters());
    kinds.extend(lazy_and_preallocated());
    kinds.extend(compressed());
    kinds.extend(overlays());
    kinds.extend(chains());
    kinds.extend(snapshots());
    kinds.extend(zeroes_and_extras());
    kinds.extend(refused());
    kinds
}

fn cluster_sizes() -> impl Iterator<Item = Kind> {
    let sizes = (9..=21).map(|bits| 1 << bits);
    let third = sizes.map(|size| Kind::new(format!("v3-cluster-{size}"), size));
    let second = [512, 4096, 65_536, 2 << 20].map(|size| Kind::new(format!("v2-cluster-{size}"), size).v2());
    let empty = [
        Kind::new("v3-empty", 65_536).fill(Fill::Empty),
        Kind::new("v2-empty", 65_536).v2().fill(Fill::Empty),
    ];
    third.chain(second).chain(empty)
}

fn refcount_widths() -> impl Iterator<Item = Kind> {
    let wide = [1, 2, 4, 8, 32, 64].map(|bits| (65_536, bits));
    wide.into_iter()
        .chain([(512, 1), (512, 64), (4096, 8), (2 << 20, 1)])
        .map(|(cluster, bits)| {
            Kind::new(format!("refcount-{bits}-cluster-{cluster}"), cluster).option(format!("refcount_bits={bits}"))
        })
}

fn subclusters() -> Vec<Kind> {
    let extended = |name: &str, cluster| Kind::new(name, cluster).option("extended_l2=on");
    vec![
        extended("subclusters-16k", 16 << 10),
        extended("subclusters-64k", 64 << 10),
        extended("subclusters-128k", 128 << 10),
        extended("subclusters-2m", 2 << 20),
        extended("subclusters-metadata", 64 << 10)
            .option("preallocation=metadata")
            .fill(Fill::Empty),
        extended("subclusters-zeroes", 64 << 10).fill(Fill::Zeroes),
        extended("subclusters-compressed", 64 << 10).fill(Fill::Mixed),
        extended("subclusters-over-qcow2", 64 << 10).over(Qcow2, 100),
        extended("subclusters-over-smaller-raw", 32 << 10).over(Raw, 40),
        extended("subclusters-over-subclusters", 128 << 10)
            .over(Qcow2, 100)
            .below(|backing| {
                backing.extended = true;
                backing.cluster = 16 << 10;
            }),
        extended("subclusters-snapshot", 64 << 10).extra(Extra::Snapshots(2)),
        extended("subclusters-lazy", 64 << 10).option("lazy_refcounts=on"),
    ]
}

fn lazy_and_preallocated() -> Vec<Kind> {
    let lazy = |name: &str, cluster| Kind::new(name, cluster).option("lazy_refcounts=on");
    let ahead = |name: &str, cluster, how: &str| {
        Kind::new(name, cluster)
            .option(format!("preallocation={how}"))
            .fill(Fill::Empty)
    };
    vec![
        lazy("lazy-64k", 65_536),
        lazy("lazy-4k", 4096),
        lazy("lazy-512-overlay", 512).over(Qcow2, 100),
        lazy("lazy-snapshot", 65_536).extra(Extra::Snapshots(1)),
        ahead("prealloc-metadata-64k", 65_536, "metadata"),
        ahead("prealloc-metadata-512", 512, "metadata"),
        ahead("prealloc-falloc", 65_536, "falloc"),
        ahead("prealloc-full", 65_536, "full"),
        ahead("prealloc-metadata-scattered", 4096, "metadata").fill(Fill::Scattered),
    ]
}

fn compressed() -> Vec<Kind> {
    let small = |name: &str, cluster: u64, how: &str, fill| {
        Kind::new(name, cluster)
            .option(format!("compression_type={how}"))
            .fill(fill)
    };
    vec![
        small("zlib-512", 512, "zlib", Fill::Mixed),
        small("zlib-4k", 4096, "zlib", Fill::Mixed),
        small("zlib-4k-whole", 4096, "zlib", Fill::Compressed),
        small("zlib-64k", 65_536, "zlib", Fill::Mixed),
        small("zlib-64k-whole", 65_536, "zlib", Fill::Compressed),
        small("zlib-2m", 2 << 20, "zlib", Fill::Mixed),
        small("zstd-512", 512, "zstd", Fill::Mixed),
        small("zstd-4k", 4096, "zstd", Fill::Mixed),
        small("zstd-64k", 65_536, "zstd", Fill::Mixed),
        small("zstd-64k-whole", 65_536, "zstd", Fill::Compressed),
        small("zstd-2m", 2 << 20, "zstd", Fill::Mixed),
        Kind::new("zlib-v2", 65_536).v2().fill(Fill::Mixed),
        small("zlib-refcount-64", 16 << 10, "zlib", Fill::Mixed).option("refcount_bits=64"),
    ]
}

fn overlays() -> Vec<Kind> {
    let overlay = |name: &str| Kind::new(name, 65_536);
    vec![
        overlay("over-raw").over(Raw, 100),
        overlay("over-raw-smaller").over(Raw, 37),
        overlay("over-raw-larger").over(Raw, 150),
        overlay("over-raw-relative").over(Raw, 100).below(|b| b.relative = true),
        overlay("over-qcow2").over(Qcow2, 100),
        overlay("over-qcow2-smaller").over(Qcow2, 37),
        overlay("over-qcow2-larger").over(Qcow2, 150),
        overlay("over-qcow2-relative")
            .over(Qcow2, 100)
            .below(|b| b.relative = true),
        overlay("over-raw-odd-tail")
            .over(Raw, 50)
            .below(|b| b.size = 3 * MIB + 777),
        overlay("over-zlib").over(Qcow2, 100).below(|b| b.compressed = true),
        overlay("over-empty-overlay").over(Qcow2, 100).fill(Fill::Empty),
        overlay("over-v2").v2().over(Qcow2, 100),
        overlay("over-v2-smaller").v2().over(Raw, 40),
        overlay("over-zeroes").over(Raw, 100).fill(Fill::Zeroes),
        overlay("over-qcow2-mixed").over(Qcow2, 60).fill(Fill::Mixed),
        overlay("over-smaller-prealloc")
            .over(Raw, 20)
            .option("extended_l2=on")
            .option("preallocation=metadata")
            .fill(Fill::Empty),
    ]
}

fn chains() -> Vec<Kind> {
    let chain = |name: &str, cluster, below| {
        Kind::new(name, cluster)
            .size(8 * MIB)
            .over(Qcow2, 100)
            .below(|b| b.cluster = below)
    };
    vec![
        chain("chain-512-over-2m", 512, 2 << 20).size(2 * MIB),
        chain("chain-2m-over-512", 2 << 20, 512),
        chain("chain-4k-over-64k", 4096, 65_536),
        chain("chain-3-deep", 65_536, 65_536).below(|b| b.depth = 3),
        chain("chain-6-deep-relative", 16 << 10, 4096).below(|b| {
            b.depth = 6;
            b.relative = true;
        }),
    ]
}

fn snapshots() -> Vec<Kind> {
    let taken = |name: &str, cluster| Kind::new(name, cluster).extra(Extra::Snapshots(1));
    vec![
        taken("snapshot-64k", 65_536),
        taken("snapshot-4k", 4096),
        taken("snapshot-512", 512),
        taken("snapshot-2m", 2 << 20),
        taken("snapshot-v2", 65_536).v2(),
        Kind::new("snapshots-3", 65_536).extra(Extra::Snapshots(3)),
        Kind::new("snapshots-grown", 65_536).extra(Extra::Grown),
        taken("snapshot-overlay", 65_536).over(Qcow2, 100),
        taken("snapshot-zlib", 65_536).fill(Fill::Mixed),
        taken("snapshot-zlib-4k", 4096).fill(Fill::Mixed),
        taken("snapshot-refcount-2", 65_536).option("refcount_bits=2"),
        taken("snapshot-refcount-64", 4096).option("refcount_bits=64"),
        taken("snapshot-metadata", 65_536)
            .option("preallocation=metadata")
            .fill(Fill::Empty),
    ]
}

fn zeroes_and_extras() -> Vec<Kind> {
    let with = |name: &str, extra| Kind::new(name, 65_536).extra(extra);
    vec![
        Kind::new("zeroes-64k", 65_536).fill(Fill::Zeroes),
        Kind::new("zeroes-512", 512).fill(Fill::Zeroes),
        Kind::new("zeroes-4k-overlay", 4096).over(Qcow2, 100).fill(Fill::Zeroes),
        with("data-file", Extra::DataFile),
        with("data-file-raw", Extra::DataFileRaw),
        with("data-file-overlay", Extra::DataFile).over(Qcow2, 100),
        with("data-file-subclusters", Extra::DataFile).option("extended_l2=on"),
        with("bitmap-following", Extra::Bitmap(true)),
        with("bitmap-idle", Extra::Bitmap(false)),
        with("bitmap-snapshot", Extra::Bitmap(true)).extra(Extra::Snapshots(1)),
        with("unknown-extension", Extra::UnknownExtension(45)),
        with("unknown-extension-overlay", Extra::UnknownExtension(8)).over(Qcow2, 100),
        with("unknown-compatible", Extra::UnknownCompatible),
        with("unknown-autoclear", Extra::UnknownAutoclear),
    ]
}

fn refused() -> Vec<Kind> {
    let with = |name: &str, extra| Kind::new(name, 65_536).fill(Fill::Empty).extra(extra);
    vec![
        with("refused-luks", Extra::Encrypted("luks")),
        with("refused-aes", Extra::Encrypted("aes")),
        with("refused-unknown-feature", Extra::UnknownIncompatible),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_are_enough_kinds_and_their_names_differ() {
        let kinds = all();
        let usable = kinds.iter().filter(|kind| kind.refused().is_none()).count();
        assert!(usable >= 55, "{usable} kinds");
        let names: BTreeSet<_> = kinds.iter().map(|kind| &kind.name).collect();
        assert_eq!(names.len(), kinds.len());
    }
}
