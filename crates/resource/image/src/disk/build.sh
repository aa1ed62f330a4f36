#!/bin/busybox sh
# Makes a Debian root file system on /dev/vda, and powers off. The first process of the guest that builds a disk.
#
#   /build/first       names of the package files that make dpkg and maintainer scripts work, one a line
#   /build/rest        names of all others
#   /build/packages/   the files
#   /build/files/      what is put over the installed system at the end
#   /build/tools/      mke2fs, tune2fs, e2fsck, dpkg-deb and tar, with their libraries
#
# What happens is told on the second serial port, a line each: dpkg's own status lines (dpkg(1), --status-fd), and lines
# of ours, `posada: stage …`, `posada: failed …` and, last of all and only if everything worked, `posada: done`.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true
# The machine starts the kernel directly and brings an initramfs of its own.
export INITRD=No

disk=/dev/vda
target=/target
report=/dev/ttyS1

say() { echo "posada: $*" > $report; }
fail() { say "failed $*"; sync; poweroff -f; sleep 60; }
run() { "$@" || fail "$* (status $?)"; }
tool() { name=$1; shift; /build/tools/ld.so --library-path /build/tools /build/tools/$name "$@"; }
# By path: busybox would run its own program of that name.
within() { chroot $target "$@"; }
# Paths of package files inside of the target.
files() { while read -r file; do echo /build/packages/$file; done < $1; }

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for bus in pci virtio; do
    set -- /sys/bus/$bus/devices/*/modalias
    [ -e "$1" ] && modprobe -q -b -a $(cat "$@") 2>/dev/null
done
modprobe -q ext4
stty -F $report raw -echo 2>/dev/null

for wait in 1 2 3 4 5 6 7 8 9 10; do
    [ -b $disk ] && break
    sleep 1
done
[ -b $disk ] || fail "there is no disk $disk"

say "stage Making the file system"
# Tables are written now rather than by a thread of the kernel on each of the first boots. The journal comes in the end:
# a disk that is not complete is thrown away.
run tool mke2fs -q -F -t ext4 -L posada -O ^has_journal -E lazy_itable_init=0 $disk
run mkdir $target
run mount -t ext4 -o noatime $disk $target

say "stage Unpacking the first packages"
# The folders of the merged file system (usrmerge(7)), which packages expect to find.
for folder in bin sbin lib lib64; do
    run mkdir -p $target/usr/$folder
    run ln -s usr/$folder $target/$folder
done
run mkdir -p $target/build $target/proc $target/sys $target/dev $target/run $target/etc
cd $target || fail "cannot enter $target"
while read -r file; do
    tool dpkg-deb --fsys-tarfile /build/packages/"$file" | tool tar -x --keep-directory-symlink -f - ||
        fail "$file does not unpack"
done < /build/first
# Package lists, and what tells the installation from one on a running system.
run mkdir -p var/lib/dpkg/info var/lib/apt/lists/partial
: > var/lib/dpkg/status
: > var/lib/dpkg/available
printf '#!/bin/sh\nexit 101\n' > usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
run mount --bind /build $target/build
run mount -t proc proc $target/proc
run mount -t sysfs sysfs $target/sys
run mount -t devtmpfs dev $target/dev
run mount -t tmpfs run $target/run

say "install"
# As debootstrap(8) does it: first what every maintainer script may use, whose parts need each other; then the rest,
# all unpacked before any is configured, so that dependencies are there in whatever order they come.
within /usr/bin/dpkg --status-fd 3 --force-unsafe-io --force-depends --install $(files /build/first) 3> $report ||
    fail "dpkg could not install the first packages"
within /usr/bin/dpkg --status-fd 3 --force-unsafe-io --force-depends --unpack $(files /build/rest) 3> $report ||
    fail "dpkg could not unpack the packages"
within /usr/bin/dpkg --status-fd 3 --force-unsafe-io --force-confold --configure -a 3> $report ||
    fail "dpkg could not configure the packages"
[ -z "$(within /usr/bin/dpkg --audit)" ] || fail "dpkg says that packages are incomplete: $(within /usr/bin/dpkg --audit | head -n 5)"

say "stage Finishing"
run rm usr/sbin/policy-rc.d
run cp -a /build/files/. .
if [ -d /build/lists ]; then run cp /build/lists/* var/lib/apt/lists/; fi
# Every guest gets an identity of its own when it first starts (machine-id(5)).
: > etc/machine-id
rm -f var/lib/dbus/machine-id var/log/bootstrap.log var/log/alternatives.log var/log/dpkg.log
# Their work is the host's, or nobody's: looking for updates, checking a volume manager's snapshots.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service; do
    within /usr/bin/systemctl --quiet disable $unit
done
umount run dev sys proc build || fail "the system is still in use"
rmdir build
run sync
# What was written and removed again takes no room in the image.
within /usr/sbin/fstrim /
cd /
run umount $target
run tool tune2fs -O has_journal -J size=64 $disk
tool e2fsck -f -n $disk || fail "the new file system is damaged"
sync
say "done"
poweroff -f
sleep 60
