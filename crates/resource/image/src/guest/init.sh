#!/bin/busybox sh
# The guest's first process: makes the machine usable, runs the session, powers off.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Links to busybox are made along with the image. Where the host could not ask busybox for its names, they are not.
[ -e /bin/mount ] || /bin/busybox --install -s

mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -a
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
hostname -F /etc/hostname
ip link set lo up

# Drivers for what is plugged in: the devices on PCI first, then those that virtio finds behind them.
for bus in pci virtio; do
    set -- /sys/bus/$bus/devices/*/modalias
    [ -e "$1" ] && modprobe -q -b -a $(cat "$@") 2>/dev/null
done

# A network, if there is a card. Whatever answers gives addresses in a moment; where nothing does, the session waits no
# longer than this.
if [ -e /sys/class/net/eth0 ]; then
    modprobe -q -a af_packet ipv6 2>/dev/null
    ip link set eth0 up
    udhcpc -i eth0 -n -q -t 2 -T 1 -s /etc/udhcpc.script >/dev/null 2>&1
fi

# What poweroff, halt and reboot, called without -f, send to the first process.
trap 'poweroff -f' USR1 USR2
trap 'reboot -f' TERM

# A shell may run for days: let it hear of the power button.
if [ -d /etc/acpi ]; then
    modprobe -q -a button evdev 2>/dev/null && acpid
fi

# Commands from outside, where there is a way for them.
[ -e /dev/vsock ] && /sbin/posada-agent --serve &

# In the background, for a shell that waits for a foreground process does not run its traps.
/sbin/posada-agent /etc/posada/session &
wait $!

poweroff -f
