#!/bin/sh
# Makes the seed corpus of the fuzz targets from images that qemu-img and qemu-io write. Small on purpose: it is committed.
# Usage: tests/fuzz/make-corpus.sh   (needs qemu-img, qemu-io, python3, gzip, bzip2, xz, zstd)
set -eu
cd "$(dirname "$0")"
(cd corpus && rm -rf image header extensions snapshots bitmaps compressed)
mkdir -p corpus/image corpus/header corpus/extensions corpus/snapshots corpus/bitmaps corpus/compressed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

io() { image=$1; shift; for c in "$@"; do qemu-io -t unsafe -f qcow2 -c "$c" "$image" >/dev/null; done; }

# name, options, size, commands …
image() {
    name=$1 options=$2 size=$3; shift 3
    qemu-img create -q -f qcow2 -o "$options" "$work/$name" "$size"
    io "$work/$name" "$@"
}

image plain cluster_size=512 256k "write -P 1 0 3k" "write -P 2 100k 2k" "write -z 8k 2k"
image v2 compat=0.10,cluster_size=1k 256k "write -P 1 0 3k" "write -P 2 100k 2k"
image zlib cluster_size=4k 256k "write -c -P 5 0 32k" "write -P 1 64k 4k"
image zstd cluster_size=4k,compression_type=zstd 256k "write -c -P 5 0 32k"
image extended cluster_size=16k,extended_l2=on 512k "write -P 1 0 1k" "write -z 40k 2k"
image bits1 cluster_size=512,refcount_bits=1 64k "write -P 1 0 3k"
image bits64 cluster_size=512,refcount_bits=64 64k "write -P 1 0 3k"
image lazy cluster_size=512,lazy_refcounts=on 64k "write -P 1 0 3k"
qemu-io -t unsafe -f qcow2 -c "write -P 2 8k 8k" -c flush -c abort "$work/lazy" >/dev/null 2>&1 || true
image snapshots cluster_size=512 128k "write -P 1 0 8k"
qemu-img snapshot -c first "$work/snapshots"
io "$work/snapshots" "write -P 2 4k 8k"
qemu-img snapshot -c second "$work/snapshots"
image bitmaps cluster_size=512 128k "write -P 1 0 8k"
qemu-img bitmap --add -g 4k "$work/bitmaps" nightly
qemu-img bitmap --add --disable -g 512 "$work/bitmaps" manual
image metadata cluster_size=512,preallocation=metadata 64k
image large cluster_size=64k 4M "write -P 1 0 1k"
(cd "$work" && qemu-img create -q -f qcow2 -o cluster_size=1k -b plain -F qcow2 overlay && qemu-io -t unsafe -f qcow2 -c "write -P 9 1k 1k" overlay >/dev/null)

for f in "$work"/*; do cp "$f" corpus/image/; done

# What the targets for single structures take, cut out of the images.
python3 - "$work" corpus <<'PYTHON'
import os, struct, sys
work, out = sys.argv[1:]
def put(kind, name, data):
    open(os.path.join(out, kind, name), "wb").write(data)
for name in sorted(os.listdir(work)):
    b = open(os.path.join(work, name), "rb").read()
    version, backing = struct.unpack(">I", b[4:8])[0], struct.unpack(">Q", b[8:16])[0]
    cluster = 1 << struct.unpack(">I", b[20:24])[0]
    put("header", name, b[:min(cluster, 1024)])
    start = struct.unpack(">I", b[100:104])[0] if version > 2 else 72
    put("extensions", name, b[start:min(backing or cluster, cluster, 1024)])
    count, at = struct.unpack(">IQ", b[60:72])
    if count:
        put("snapshots", name, b[at:at + 256])
    i = b.find(struct.pack(">I", 0x23852875), start, cluster)
    if i > 0:
        n, _, size, at = struct.unpack(">IIQQ", b[i + 8:i + 32])
        put("bitmaps", name, bytes([n]) + b[at:at + size])
    if name in ("zlib", "zstd"):
        l1 = struct.unpack(">Q", b[40:48])[0]
        l2 = struct.unpack(">Q", b[l1:l1 + 8])[0] & 0xfffffffffffe00
        word = struct.unpack(">Q", b[l2:l2 + 8])[0]
        shift = 62 - (12 - 8)
        at = word & ((1 << shift) - 1)
        put("compressed", name, bytes([name == "zstd"]) + b[at:at + 512])
PYTHON

# Images of other formats, compressed streams, a vmdk's description, an OVA. Inputs of `inspector` and `decompress` begin with
# the target's other arguments.
mkdir -p corpus/inspector corpus/decompress corpus/vmdk_descriptor corpus/ovf
for format in vmdk vpc vdi; do qemu-img create -q -f $format "$work/$format" 1M; done
head -c 4096 /dev/zero | tr '\0' 'a' > "$work/data"
qemu-img convert -q -f raw -O vmdk -o subformat=streamOptimized "$work/data" "$work/stream"
python3 - "$work" corpus <<'PYTHON'
import bz2, gzip, hashlib, io, lzma, os, struct, subprocess, sys, tarfile
work, out = sys.argv[1:]
def put(kind, name, data):
    open(os.path.join(out, kind, name), "wb").write(data)
def read(name):
    return open(os.path.join(work, name), "rb").read()
arguments = b"\xff\x0f\x01"
for name in ("vmdk", "stream", "vpc", "vdi", "plain", "v2"):
    put("inspector", name, arguments + read(name)[:20000].rstrip(b"\0") + b"\0" * 8)
text = read("vmdk")[512:512 + 10240].rstrip(b"\0")
put("vmdk_descriptor", "sparse", text)
put("vmdk_descriptor", "parent", text + b'parentFileNameHint="x"\n')
data = b"some data, " * 20
zstd = subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
for name, packed in (("gzip", gzip.compress(data, mtime=0)), ("bzip2", bz2.compress(data)), ("xz", lzma.compress(data)), ("zstd", zstd)):
    put("decompress", name, b"\x07" + packed)
    put("decompress", name + "-twice", b"\x07" + packed + packed)
ovf = b"""<Envelope><References><File id="f" href="d.vmdk" size="4"/></References><DiskSection>
<Disk fileRef="f" capacity="1" capacityAllocationUnits="byte * 2^20"/></DiskSection></Envelope>"""
put("ovf", "description", ovf)
mf = "".join("SHA256(%s)= %s\n" % (n, hashlib.sha256(b).hexdigest()) for n, b in (("a.ovf", ovf), ("d.vmdk", b"disk")))
for name, order in (("plain", ("a.ovf", "d.vmdk")), ("signed", ("a.ovf", "a.mf", "d.vmdk")), ("last", ("a.ovf", "d.vmdk", "a.mf"))):
    buffer = io.BytesIO()
    tar = tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)
    for entry in order:
        content = {"a.ovf": ovf, "a.mf": mf.encode(), "d.vmdk": b"disk"}[entry]
        info = tarfile.TarInfo(entry)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    tar.close()
    put("ovf", name, buffer.getvalue()[:4608])
PYTHON
du -sh corpus
