#!/bin/sh
# Derives what the disk scenarios boot from the base root: the tiny guest's initrd with more modules, and with the tools of
# Debian packages in a second archive behind the first (the kernel unpacks both).
# usage: disk-guest.sh BASE.tar OUT_DIR INITRD_SH INIT PACKAGES TOOLS MODULE...   (TOOLS: paths in the root, separated by spaces)
set -eu
base=$1 out=$2 initrd=$3 init=$4 packages=$5 tools=$6
shift 6
root=$out/root
rm -rf "$root"
mkdir -p "$root"
tar -C "$root" -xf "$base"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# shellcheck disable=SC2086 # the list is meant to be split
DEBIAN_FRONTEND=noninteractive INITRD=No chroot "$root" apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Options::=--force-unsafe-io \
    install -y --no-install-recommends $packages > "$out/packages.log" 2>&1 || { tail -20 "$out/packages.log"; exit 1; }
tree=$out/tree
rm -rf "$tree"
mkdir -p "$tree/usr/bin" "$tree/usr/lib/x86_64-linux-gnu" "$tree/lib64"
for tool in $tools; do
    cp -L "$root$tool" "$tree/usr/bin/"
    # What the loader would load, by name: every library of a merged root is found under /usr/lib.
    chroot "$root" ldd "$tool" | awk '$2 == "=>" { print $3 }' >> "$out/libraries"
done
sort -u "$out/libraries" | while read -r library; do cp -L "$root$library" "$tree/usr/lib/x86_64-linux-gnu/"; done
cp -L "$root/lib64/ld-linux-x86-64.so.2" "$tree/lib64/"
sh "$initrd" "$root" "$init" "$out/initrd.part" "$@"
(cd "$tree" && find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0) >> "$out/initrd.part"
mv "$out/initrd.part" "$out/initrd.img"
rm -rf "$root" "$tree" "$out/libraries"
