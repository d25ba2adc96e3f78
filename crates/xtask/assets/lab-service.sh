#!/bin/bash
# Runs in the lab host: does what the payload says, sends output, results and exit status over virtio-serial ports, powers off.
word() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
ports=/dev/virtio-ports
export PATH=/payload/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
# udev is still at work: wait for what is used here rather than for all it finds.
tries=0
until [ -e $ports/karat.status ] && [ -e /sys/class/net/eth0 ] && [ -e /dev/disk/by-label/karat-payload ] && [ -e /dev/kvm ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 300 ] && { echo "lab: no ports, network, payload or kvm after 30 s"; break; }
    sleep 0.1
done
# eth0 reaches the outer machine's loopback as 10.0.2.2; eth1, when there, joins the lab hosts with each other.
ip link set lo up
ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default via 10.0.2.2
if [ -e /sys/class/net/eth1 ]; then
    ip address add "10.99.0.$(word karat.host)/24" dev eth1
    ip link set eth1 up
fi
echo "lab$(word karat.host)" > /proc/sys/kernel/hostname
mkdir -p /results
mount -o ro LABEL=karat-payload /payload || echo "lab: no payload disk"
if [ "$(word karat.lab)" = shell ]; then
    systemctl start --no-block serial-getty@ttyS0.service
    exit 0
fi
cd /results || exit 1
/payload/run > $ports/karat.out 2>&1 < /dev/null
status=$?
journalctl --no-pager -b > /results/journal.txt 2> /dev/null
tar -C /results -cf $ports/karat.results . 2> /dev/null
echo "$status" > $ports/karat.status
poweroff -f
