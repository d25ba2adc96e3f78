#!/bin/sh
# Derives the lab host from the base root: a root directory, its ext4 image, kernel and initrd.
# usage: lab-root.sh BASE.tar OUT_DIR SERVICE_SCRIPT INITRD_SH DISK_INIT PACKAGES
set -eu
base=$1 out=$2 service=$3 initrd=$4 init=$5 packages=$6
root=$out/root
rm -rf "$root"
mkdir -p "$root"
tar -C "$root" -xf "$base"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# shellcheck disable=SC2086 # the list is meant to be split
DEBIAN_FRONTEND=noninteractive INITRD=No chroot "$root" apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Options::=--force-unsafe-io \
    install -y --no-install-recommends $packages > "$out/packages.log" 2>&1 || { tail -20 "$out/packages.log"; exit 1; }
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*

install -m 755 "$service" "$root/usr/local/sbin/karat-lab"
cat > "$root/etc/systemd/system/karat-lab.service" <<'U'
[Unit]
Description=What the lab was booted for
After=basic.target systemd-modules-load.service
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/karat-lab
StandardInput=null
StandardOutput=journal+console
LimitNOFILE=65536
TasksMax=infinity
[Install]
WantedBy=multi-user.target
U
mkdir -p "$root/payload" "$root/etc/systemd/system/multi-user.target.wants" "$root/etc/systemd/system/serial-getty@ttyS0.service.d"
ln -s ../karat-lab.service "$root/etc/systemd/system/multi-user.target.wants/"
# What a throw-away host does not need; each costs seconds under emulation.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-timesyncd.service \
    systemd-pstore.service getty@tty1.service systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-random-seed.service \
    systemd-networkd-wait-online.service systemd-journal-flush.service systemd-journal-catalog-update.service systemd-hwdb-update.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount modprobe@drm.service \
    modprobe@configfs.service modprobe@fuse.service modprobe@efi_pstore.service keyboard-setup.service console-setup.service nftables.service docker-registry.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
printf '[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 %%I xterm-256color\n' \
    > "$root/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf"
# The console getty is only wanted when a person asked for a shell.
ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-getty-generator" 2> /dev/null ||
    { mkdir -p "$root/etc/systemd/system-generators" && ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-getty-generator"; }
printf '%s\n' kvm_amd tun bridge nf_tables vhost_net vhost_vsock > "$root/etc/modules-load.d/karat.conf"
printf 'Storage=volatile\nRateLimitBurst=0\n' | sed '1i [Journal]' > "$root/etc/systemd/journald.conf"
printf 'LABEL=karat-lab / ext4 rw,noatime 0 0\n' > "$root/etc/fstab"
echo karat-lab > "$root/etc/hostname"
printf '127.0.0.1 localhost karat-lab\n10.0.2.2 outer\n' > "$root/etc/hosts"
rm -f "$root/etc/resolv.conf"
chroot "$root" passwd -d root > /dev/null
systemd-machine-id-setup --root="$root" > /dev/null 2>&1 || echo 00000000000000000000000000000001 > "$root/etc/machine-id"

kernel=$(ls "$root"/boot/vmlinuz-*)
cp "$kernel" "$out/vmlinuz"
sh "$initrd" "$root" "$init" "$out/initrd.img" virtio_pci virtio_blk virtio_console ext4
rm -f "$out/root.img"
truncate -s 6G "$out/root.img"
mke2fs -q -t ext4 -L karat-lab -m 0 -O ^has_journal -E lazy_itable_init=1 -d "$root" "$out/root.img"
rm -rf "$root"
