#!/bin/bash
# The demonstration: karatd as a service, a golden image pulled from a registry and booted, its console, its disk and network, a clean stop.
# usage: demo.sh service|transient PROGRAMS PACKAGING REGISTRY WORK
#   service    installs karatd.service on this host, as a package would (the lab host)
#   transient  a transient unit with its own directories; nothing of it stays (a person's own machine)
set -u
how=$1 programs=$2 packaging=$3 registry=$4 work=$5
image=$registry/karat/debian:12
tap=karat-demo guest_address=192.0.2.2 host_address=192.0.2.1
mkdir -p "$work"
export PATH=$programs:$PATH

note() { printf '\n# %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
fail() {
    printf '\nDEMO FAILED: %s\n' "$*"
    if [ "$how" = service ]; then journalctl --no-pager -u karatd.service -n 40; else tail -n 40 "$work/karatd.log"; fi
    exit 1
}
end() {
    [ -n "${launcher:-}" ] && kill "$launcher" 2> /dev/null
    ip link delete "$tap" 2> /dev/null
    if [ "$how" = transient ]; then
        karat rm --force demo > /dev/null 2>&1
        systemctl stop karat-demo.service 2> /dev/null || kill "${daemon:-0}" 2> /dev/null
        rm -rf "$work"
    fi
}
trap end EXIT

config() {
    printf 'insecure_registries = ["%s"]\n' "$registry"
}

start_daemon() {
    if [ "$how" = service ]; then
        note "karatd is installed and started as a systemd service"
        install -D -m 755 "$programs/karatd" /usr/sbin/karatd
        install -D -m 755 "$programs/karat" /usr/bin/karat
        install -D -m 755 "$programs/karat-vmm" /usr/libexec/karat/karat-vmm
        install -D -m 644 "$packaging"/karatd.* --target-directory=/etc/systemd/system
        install -D -m 644 "$packaging"/sysusers.d/* --target-directory=/usr/lib/sysusers.d
        systemd-sysusers
        # Only plain HTTP for the registry differs from the defaults.
        install -D -m 644 "$packaging/karat.toml" /etc/karat/karat.toml
        config >> /etc/karat/karat.toml
        show tail -n 1 /etc/karat/karat.toml
        systemctl daemon-reload
        show systemctl enable --quiet --now karatd.socket karatd.service || fail "karatd.service did not start"
        show systemctl --no-pager --lines=0 status karatd.service
    else
        note "karatd is started as a transient systemd unit with directories of its own"
        { config; printf 'state_dir = "%s/state"\nrun_dir = "%s/run"\nsocket = "%s/run/karat.sock"\nsocket_group = "root"\n' "$work" "$work" "$work"; } > "$work/karat.toml"
        mkdir -p "$work/run" "$work/state"
        export KARAT_SOCKET=$work/run/karat.sock
        if [ -d /run/systemd/system ]; then
            show systemd-run --quiet --unit=karat-demo --property=Type=notify --property=StandardError="file:$work/karatd.log" \
                "$programs/karatd" --config "$work/karat.toml" || fail "karatd did not start"
        else
            show "$programs/karatd" --config "$work/karat.toml" > "$work/karatd.log" 2>&1 &
            daemon=$!
        fi
    fi
    for _ in $(seq 50); do { karat ls; } > /dev/null 2>&1 && return; sleep 0.2; done 2> /dev/null
    karat ls
    fail "karatd does not answer"
}

# What the guest prints goes to the transcript as it comes; `expect` waits for a word in it.
expect() {
    local deadline=$((SECONDS + $2))
    until grep -qaF -- "$1" "$work/console"; do
        [ $SECONDS -ge $deadline ] && fail "the console did not show '$1' within $2 s"
        kill -0 "$launcher" 2> /dev/null || { sleep 1; grep -qaF -- "$1" "$work/console" || fail "karat run ended before '$1'"; }
        sleep 0.2
    done
}
type_line() { printf '%s\n' "$1" >&7; }

start_daemon
note "a tap device for the guest's network"
show ip tuntap add dev "$tap" mode tap
show ip address add "$host_address/24" dev "$tap"
show ip link set "$tap" up

note "the golden image is pulled and booted; its console is attached"
cmdline="console=ttyS0 root=LABEL=karat-root rw quiet net.ifnames=0 ip=$guest_address::$host_address:255.255.255.0::eth0:none"
mkfifo "$work/keyboard"
: > "$work/console"
begun=$SECONDS
printf '$ %s\n' "karat run $image --name demo --cpus 1 --memory 512Mi --network tap:$tap --cmdline '$cmdline'"
karat run "$image" --name demo --cpus 1 --memory 512Mi --network "tap:$tap" --cmdline "$cmdline" \
    < "$work/keyboard" > >(tee "$work/console") 2>&1 &
launcher=$!
exec 7> "$work/keyboard"
expect "login:" 240
shown=$((SECONDS - begun))
type_line root
expect "Password:" 60
type_line karat
expect "root@karat-guest:~#" 60
type_line 'echo "disk: $(lsblk -ndo NAME,SIZE /dev/vda)"; ip -brief address show eth0; echo seen-$((40 + 2))'
expect "seen-42" 60
type_line "ping -c 2 $host_address; echo pinged-\$?"
expect "pinged-0" 60
note "from the host"
show karat ls || fail "karat ls failed"
show karat show demo || fail "karat show failed"
show ping -c 2 "$guest_address" || fail "the host does not reach the guest"
note "the power button: a clean shutdown"
show karat stop demo || fail "karat stop failed"
wait "$launcher"
show karat ls
karat show demo -o json > "$work/after.json" || fail "karat show failed after the stop"
grep -qiE '"(state|phase)"[^,]*"stopped"' "$work/after.json" || { cat "$work/after.json"; fail "the machine is not stopped"; }
grep -qaE "Power down|Powering off|Reached target.*(Shutdown|Power)" "$work/console" || echo "(the guest's console was quiet about its shutdown)"
show karat rm demo || fail "karat rm failed"
note "login prompt $shown s after karat run; all done"
