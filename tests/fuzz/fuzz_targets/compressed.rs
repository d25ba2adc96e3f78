//! Data of a compressed cluster. The first byte chooses deflate or zstd (bit 0) and the size of clusters (the rest).
#![no_main]

use disk::Disk;
use disk_qcow2::meta::entry::{COMPRESSED, COPIED};
use disk_qcow2::ops::{CompressionKind, CreateOptions, Head, create};
use guestmem::IoBuf;
use karat_fuzz::{FILE_BYTES, Memory, open_and_read, run};
use libfuzzer_sys::fuzz_target;

async fn put(image: &Memory, offset: u64, bytes: &[u8]) {
    let io = image.open_queue().expect("a queue");
    let end = (offset + bytes.len() as u64).next_multiple_of(512);
    io.grow(end.max(image.geometry().size_bytes)).await.expect("room");
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    let buf = IoBuf::from_bytes(&padded).expect("memory");
    io.write(offset, vec![buf]).await.0.expect("a write");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, data)) = bytes.split_first() else { return };
    if data.is_empty() || data.len() > 64 << 10 {
        return;
    }
    let cluster_bits = 9 + u32::from(choice >> 1) % 13;
    let options = CreateOptions {
        cluster_bytes: 1 << cluster_bits,
        compression: match choice & 1 {
            0 => CompressionKind::Zlib,
            _ => CompressionKind::Zstd,
        },
        ..CreateOptions::of_size(64 << 10)
    };
    run(async {
        let image = Memory::holding(&[], FILE_BYTES);
        let io = image.open_queue().expect("a queue");
        create(&*io, None, &options).await.expect("an image");
        let head = Head::read(&*io).await.expect("its header");
        let l2 = image.geometry().size_bytes.next_multiple_of(options.cluster_bytes);
        let at = l2 + options.cluster_bytes;
        let most = (options.cluster_bytes * 2 - 512).min(data.len() as u64);
        let sectors = most.div_ceil(512) - 1;
        let entry = COMPRESSED | sectors << (62 - (cluster_bits - 8)) | at;
        put(&image, head.header.l1_offset, &(l2 | COPIED).to_be_bytes()).await;
        put(&image, l2, &entry.to_be_bytes()).await;
        put(&image, at, data).await;
        drop(io);
        open_and_read(image).await;
    });
});
