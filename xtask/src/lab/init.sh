#!/bin/bash
# PID 1 of the emulated KVM host: sets it up as a server's host would be, runs the job of /srv/manta/lab/argv
# and reports over virtio-serial ports: status (ready, exit N), stdout, stderr, files (a tar of out/).
export PATH=/srv/manta:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
cd /srv/manta || exit

mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts /dev/shm /run/lock /var/lib/manta
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
echo lab > /proc/sys/kernel/hostname

modprobe -a virtio_console virtio_net kvm-amd tun veth loop xfs \
  nf_tables nft_chain_nat nft_masq nft_ct nft_fib_inet nft_limit nft_reject_inet

# What udev would do: these names. Not that others than root may open /dev/kvm and /dev/net/tun: jails do without.
chmod 600 /dev/kvm /dev/net/tun
for disk in /sys/block/vd*; do declare "disk_$(cat "$disk/serial")=/dev/${disk##*/}"; done
for port in /sys/class/virtio-ports/*; do declare "port_$(cat "$port/name")=/dev/${port##*/}"; done

# The work directory is on XFS, so that disks can be cloned by reflink.
mkfs.xfs -q -K -m reflink=1 "$disk_scratch" && mount -t xfs -o discard "$disk_scratch" /var/lib/manta
# As a file: of a disk nobody knows whether it has changed, so each server would hash it anew.
cp --sparse=always "$disk_rootfs" /var/lib/manta/rootfs.ext4 && chmod 444 /var/lib/manta/rootfs.ext4

# A default route, as every host has; QEMU lets nothing pass beyond it.
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2

export MANTA_KERNEL_PATH=/srv/manta/guest-artifacts/vmlinux MANTA_ROOTFS_PATH=/var/lib/manta/rootfs.ext4
export MANTA_AGENT_PATH=/srv/manta/guest-artifacts/manta-agent MANTA_FIRECRACKER_BIN=/srv/manta/firecracker
export MANTA_WORK_DIR=/var/lib/manta
export MANTA_TEST_VMM=firecracker MANTA_TEST_BIN=/srv/manta/manta MANTA_TEST_WORK_DIR=/var/lib/manta
export MANTA_TEST_TIME_SCALE=6 RUST_BACKTRACE=1

exec 3> "$port_status"
echo "ready $(cut -d' ' -f1 /proc/uptime)" >&3
ulimit -n 65536
mapfile -d '' argv < lab/argv
setsid --wait "${argv[@]}" < /dev/null > "$port_stdout" 2> "$port_stderr" 3>&-
status=$?
tar --create --file="$port_files" --directory=out .
echo "exit $status" >&3
if [ -e lab/keep ]; then
  read -r rows columns TERM < lab/keep
  export TERM
  stty rows "$rows" columns "$columns" < /dev/hvc0
  setsid --ctty --wait bash -i < /dev/hvc0 > /dev/hvc0 2>&1
fi
echo o > /proc/sysrq-trigger
sleep 60
