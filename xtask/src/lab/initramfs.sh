#!/bin/busybox sh
# PID 1 of the initramfs: loads the drivers of the disks, mounts the root and, in it, the payload.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for module in /lib/*.ko; do $b insmod "$module"; done
# Disks are probed as their driver loads; the second one is there when the wait is over.
while [ ! -b /dev/vdb ]; do $b usleep 10000; done
$b mount -t ext4 /dev/vda /root
$b mount -t ext4 /dev/vdb /root/srv/manta
for dir in dev proc sys; do $b mount --move /$dir /root/$dir; done
exec $b switch_root /root /srv/manta/lab/init
