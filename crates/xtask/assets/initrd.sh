#!/bin/sh
# Makes an initrd of busybox, the virtio modules and one init script from an unpacked root.
# usage: initrd.sh ROOT INIT OUT MODULE...   (each module is followed by what it depends on; the init loads /lib/modules.order in order)
set -eu
root=$1 init=$2 out=$3
shift 3
release=$(ls "$root/lib/modules")
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/sys" "$tree/root" "$tree/tmp" "$tree/lib/modules"
cp "$(command -v busybox)" "$tree/bin/busybox"
ln -s busybox "$tree/bin/sh"
install -m 755 "$init" "$tree/init"
for module in "$@"; do
    modprobe --dirname "$root" --set-version "$release" --show-depends "$module" 2>/dev/null || true
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
    cp "$path" "$tree/lib/modules/"
    echo "/lib/modules/${path##*/}"
done > "$tree/lib/modules.order"
[ -s "$tree/lib/modules.order" ] || { echo "no module found under $root/lib/modules" >&2; exit 1; }
# Uncompressed: a copy costs the emulated guest less than an unpacking.
(cd "$tree" && find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0) > "$out.part"
mv "$out.part" "$out"
