//! Which files come out of layers, whatever the layers try.

use std::io::Write as _;

use super::*;

fn layer(dir: &Path, name: &str, entries: &[(&str, &[u8])]) -> LayerFile {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    store(dir, name, &builder.into_inner().unwrap())
}

fn store(dir: &Path, name: &str, bytes: &[u8]) -> LayerFile {
    let file = dir.join(name);
    std::fs::write(&file, bytes).unwrap();
    LayerFile {
        digest: ImageDigest::of(bytes),
        compression: Compression::None,
        file,
    }
}

/// What an import would tell of a layer that is not taken in.
fn told(failure: Failure, digest: &ImageDigest) -> PullError {
    match failure.of_import(digest) {
        crate::ImportError::Registry(error) => error,
        other => panic!("{other}"),
    }
}

fn unpack(layers: &[&[(&str, &[u8])]]) -> Result<(String, Contents), PullError> {
    let dir = tempfile::tempdir().unwrap();
    let mut unpacker = Unpacker::new(dir.path(), 1 << 20, &[]);
    for (index, entries) in layers.iter().enumerate() {
        let layer = layer(dir.path(), &format!("layer-{index}"), entries);
        let added = unpacker.add(&layer, &mut |_| true);
        added.map_err(|failure| told(failure, &layer.digest))?;
    }
    let contents = unpacker.finish()?;
    let disk = std::fs::read_to_string(&contents.disk.file).unwrap();
    Ok((disk, contents))
}

#[test]
fn finds_each_part_in_any_layer() {
    let (disk, contents) = unpack(&[
        &[("etc/passwd", b"x"), ("boot/vmlinuz-6.1", b"kernel")],
        &[
            ("disk/debian.qcow2", b"disk"),
            ("boot/initrd.img-6.1", b"initrd"),
            ("boot/cmdline", b" quiet ro\n"),
        ],
        &[
            ("disk/sub/other.raw", b"too deep"),
            ("disk/README.md", b"no disk"),
            ("boot/grub/initrd", b"too deep"),
        ],
    ])
    .unwrap();
    assert_eq!(disk, "disk");
    assert_eq!(contents.disk.path, "disk/debian.qcow2");
    assert_eq!(contents.kernel.unwrap().path, "boot/vmlinuz-6.1");
    assert_eq!(contents.initrd.unwrap().size, 6);
    assert_eq!(contents.cmdline.unwrap(), "quiet ro");
}

#[test]
fn later_layers_replace_and_whiteouts_remove() {
    let old: &[(&str, &[u8])] = &[("disk/a.raw", b"old")];
    assert_eq!(unpack(&[old, &[("disk/a.raw", b"new")]]).unwrap().0, "new");
    assert_eq!(
        unpack(&[old, &[("disk/.wh.a.raw", b""), ("disk/b.raw", b"b")]])
            .unwrap()
            .0,
        "b"
    );
    assert_eq!(
        unpack(&[old, &[("disk/b.raw", b"b"), ("disk/.wh..wh..opq", b"")]])
            .unwrap()
            .0,
        "b"
    );
    assert_eq!(
        unpack(&[old, &[(".wh.disk", b""), ("disk/b.raw", b"b")]]).unwrap().0,
        "b"
    );
    assert_eq!(
        unpack(&[old, &[("disk", b"a file now")], &[("disk/b.raw", b"b")]])
            .unwrap()
            .0,
        "b"
    );
    // A whiteout does not reach into its own layer, nor to a name that merely begins alike.
    assert_eq!(
        unpack(&[&[("disk/a.raw", b"kept"), ("disk/.wh.a.raw", b"")]])
            .unwrap()
            .0,
        "kept"
    );
    assert_eq!(unpack(&[old, &[("disk/.wh.a", b"")]]).unwrap().0, "old");
    assert!(matches!(
        unpack(&[old, &[("disk/.wh.a.raw", b"")]]),
        Err(PullError::NoDisk { links: 0 })
    ));
}

#[test]
fn refuses_none_and_several() {
    assert!(matches!(unpack(&[&[("etc/x", b"")]]), Err(PullError::NoDisk { .. })));
    let error = unpack(&[&[("disk/a.raw", b"1"), ("disk/b.qcow2", b"2")]]).unwrap_err();
    assert!(error.to_string().contains("/disk/a.raw, /disk/b.qcow2"), "{error}");
    let disk: (&str, &[u8]) = ("disk/a.raw", b"1");
    let two_kernels = unpack(&[&[disk, ("boot/vmlinuz-1", b"1"), ("boot/vmlinuz-2", b"2")]]).unwrap_err();
    assert!(matches!(two_kernels, PullError::Ambiguous { role: "kernel", .. }));
    let (_, contents) = unpack(&[&[disk, ("boot/vmlinuz-1", b"1"), ("boot/vmlinuz", b"22")]]).unwrap();
    assert_eq!(contents.kernel.unwrap().size, 2);
}

#[test]
fn links_are_not_followed_but_counted() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_link(&mut header, "disk/a.raw", "/etc/passwd").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut unpacker = Unpacker::new(dir.path(), 1 << 20, &[]);
    let link = store(dir.path(), "layer", &builder.into_inner().unwrap());
    unpacker.add(&link, &mut |_| true).unwrap();
    assert!(matches!(unpacker.finish(), Err(PullError::NoDisk { links: 1 })));
}

#[test]
fn sizes_and_numbers_are_bounded() {
    let big = vec![1; (1 << 20) + 1];
    let error = unpack(&[&[("disk/a.raw", &big)]]).unwrap_err();
    assert!(
        matches!(
            error,
            PullError::Layer {
                source: LayerError::FileTooLarge { .. },
                ..
            }
        ),
        "{error:?}"
    );
    let many: Vec<(String, &[u8])> = (0..=CANDIDATES_MAX)
        .map(|i| (format!("disk/{i}.raw"), b"x".as_slice()))
        .collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(path, content)| (path.as_str(), *content)).collect();
    let error = unpack(&[&many]).unwrap_err();
    assert!(matches!(
        error,
        PullError::Layer {
            source: LayerError::TooMany(_),
            ..
        }
    ));
}

#[test]
fn bombs_and_damage_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let add = |bytes: &[u8], compression, left: Option<u64>| {
        let work = tempfile::tempdir().unwrap();
        let mut unpacker = Unpacker::new(work.path(), 1 << 20, &[]);
        unpacker.unpacked_left = left.unwrap_or(unpacker.unpacked_left);
        let mut layer = store(dir.path(), "layer", bytes);
        layer.compression = compression;
        let failure = unpacker.add(&layer, &mut |_| true).unwrap_err();
        told(failure, &layer.digest)
    };
    let whole = std::fs::read(layer(dir.path(), "whole", &[("disk/a.raw", &[7; 9000])]).file).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&whole).unwrap();
    let zipped = encoder.finish().unwrap();
    let bomb = add(&zipped, Compression::Gzip, Some(4000));
    assert!(
        matches!(
            bomb,
            PullError::Layer {
                source: LayerError::TooLarge { .. },
                ..
            }
        ),
        "{bomb:?}"
    );
    for (bytes, compression) in [
        (&whole[..5000], Compression::None),
        (&zipped[..zipped.len() / 2], Compression::Gzip),
    ] {
        let cut = add(bytes, compression, None);
        assert!(
            matches!(
                cut,
                PullError::Layer {
                    source: LayerError::Truncated,
                    ..
                }
            ),
            "{cut:?}"
        );
    }
    let noise = add(&[3; 2000], Compression::None, None);
    assert!(matches!(
        noise,
        PullError::Layer {
            source: LayerError::Damaged(_),
            ..
        }
    ));
}

#[test]
fn a_stop_ends_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    let layer = layer(dir.path(), "layer", &[("disk/a.raw", b"x")]);
    let mut unpacker = Unpacker::new(dir.path(), 1 << 20, &[]);
    assert!(matches!(unpacker.add(&layer, &mut |_| false), Err(Failure::Stopped)));
}

#[test]
fn command_lines_are_checked() {
    assert_eq!(check_cmdline(" a=b \n").unwrap(), "a=b");
    for bad in ["a\nb", "a\0b", "ä", &"x".repeat(2048)] {
        assert!(matches!(check_cmdline(bad), Err(PullError::Cmdline(_))), "{bad}");
    }
}
