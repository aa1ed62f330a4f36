#!/bin/busybox sh
# The first process of a guest whose system is on a disk: finds the disk, leaves Posada's part in /run, and hands over
# to the system's own first process.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin

[ -e /bin/mount ] || /bin/busybox --install -s
mount -t devtmpfs dev /dev
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
for bus in pci virtio; do
    set -- /sys/bus/$bus/devices/*/modalias
    [ -e "$1" ] && modprobe -q -b -a $(cat "$@") 2>/dev/null
done

# A disk comes a moment after its driver.
tries=0
root=
while [ -z "$root" ]; do
    for disk in /dev/vda /dev/sda /dev/nvme0n1; do
        [ -z "$root" ] && [ -b $disk ] && root=$disk
    done
    tries=$((tries + 1))
    if [ $tries = 200 ]; then
        echo "posada: there is no disk" >/dev/console
        poweroff -f
    fi
    [ -n "$root" ] || usleep 50000
done

. /posada/boot
if ! mount -t ext4 -o "$options" "$root" /root; then
    echo "posada: the file system on $root cannot be mounted" >/dev/console
    poweroff -f
fi
# What the machine brings stays out of the disk. systemd keeps a /run that is mounted already.
mount -t tmpfs -o mode=755,nosuid,nodev run /root/run
cp -a /posada/run/. /root/run/
# Class 2, subclass 0: an Ethernet card (PCI Code and ID Assignment Specification).
if grep -q '^0x0200' /sys/bus/pci/devices/*/class 2>/dev/null; then
    [ -d /posada/network ] && cp -a /posada/network/. /root/run/systemd/system/
fi
# Class 7, subclass 0x80: a socket device, or a console.
if grep -q '^0x0780' /sys/bus/pci/devices/*/class 2>/dev/null; then
    mkdir -p /root/run/systemd/system
    cp -a /posada/exec/. /root/run/systemd/system/
fi
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /sbin/init
