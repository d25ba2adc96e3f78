#!/bin/sh
# Derives the golden image from the base root: a Debian 12 with systemd and a login prompt on ttyS0; qcow2, kernel and initrd.
# usage: golden-root.sh BASE.tar OUT_DIR INITRD_SH DISK_INIT
# In the guest: root's password is "karat"; network by the kernel command line (ip=ADDRESS::GATEWAY:MASK::eth0:none).
set -eu
base=$1 out=$2 initrd=$3 init=$4
root=$out/root
rm -rf "$root"
mkdir -p "$root"
tar -C "$root" -xf "$base"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/*.log "$root"/var/log/apt
units=$root/etc/systemd/system
mkdir -p "$units/multi-user.target.wants" "$units/sysinit.target.wants" "$units/getty.target.wants"
ln -sf /lib/systemd/system/systemd-networkd.service "$units/multi-user.target.wants/"
ln -sf /lib/systemd/system/systemd-network-generator.service "$units/sysinit.target.wants/"
ln -sf /lib/systemd/system/serial-getty@.service "$units/getty.target.wants/serial-getty@ttyS0.service"
# A machine with one serial console, no timers to keep: what is left out here saves seconds where the guest is emulated twice over.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-pstore.service getty@tty1.service systemd-networkd-wait-online.service systemd-hwdb-update.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount \
    modprobe@drm.service modprobe@configfs.service modprobe@fuse.service modprobe@efi_pstore.service modprobe@loop.service \
    modprobe@dm_mod.service systemd-ask-password-console.path systemd-ask-password-wall.path; do
    ln -sf /dev/null "$units/$unit"
done
printf 'LABEL=karat-root / ext4 rw,noatime 0 1\n' > "$root/etc/fstab"
echo karat-guest > "$root/etc/hostname"
printf '127.0.0.1 localhost karat-guest\n' > "$root/etc/hosts"
: > "$root/etc/resolv.conf"
# Empty: every machine that is started from the image makes an id of its own.
: > "$root/etc/machine-id"
echo root:karat | chroot "$root" chpasswd
kernel=$(ls "$root"/boot/vmlinuz-*)
cp "$kernel" "$out/vmlinuz"
sh "$initrd" "$root" "$init" "$out/initrd.img" virtio_pci virtio_blk ext4
# The kernel is given from outside; these are not needed inside.
rm -f "$root"/boot/vmlinuz-* "$root"/boot/System.map-*
rm -f "$out/root.img" "$out/debian.qcow2"
truncate -s 4G "$out/root.img"
mke2fs -q -t ext4 -L karat-root -m 0 -E lazy_itable_init=1,lazy_journal_init=1 -J size=16 -d "$root" "$out/root.img"
qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd "$out/root.img" "$out/debian.qcow2"
rm -rf "$root" "$out/root.img"
echo "console=ttyS0 root=LABEL=karat-root rw quiet net.ifnames=0" > "$out/cmdline"
