#!/bin/sh
# Makes the base root: a Debian 12 with systemd and the cloud kernel, as a tar file. The lab host and the golden image are derived from it.
# usage: base-root.sh OUT.tar PACKAGES
set -eu
out=$1
packages=$2
# Our own tiny initrd is made by initrd.sh; the packaged generator would cost a minute under emulation and is not used.
export INITRD=No
mmdebstrap --quiet --variant=minbase --components=main --include="$packages" \
    --skip=cleanup/apt/lists \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt=force-unsafe-io --aptopt='Acquire::Languages "none"' \
    bookworm "$out.part.tar"
mv "$out.part.tar" "$out"
