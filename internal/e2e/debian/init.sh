#!/bin/busybox sh
# The guest's first program. With "make" on the kernel's command line it makes
# the encrypted root of all guests from the archive on the second disk;
# otherwise it opens that root and starts Debian on it.
/bin/busybox --install -s /bin
export PATH=/bin
# There is no udev yet: cryptsetup makes its device nodes itself.
export DM_DISABLE_UDEV=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=0755 run /run
while read -r module; do insmod "/modules/$module"; done </modules/order

echo -n secret >/key
make() {
  cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /key /dev/vda1
  cryptsetup open --key-file /key /dev/vda1 root
  mkfs.ext4 -q -E lazy_itable_init=0,nodiscard /dev/mapper/root
  mount -t ext4 /dev/mapper/root /newroot
  tar -x -f /dev/vdb -C /newroot
  umount /newroot
  cryptsetup close root
  echo "@@ made"
}
case " $(cat /proc/cmdline) " in
*" make "*)
  (set -e; make)
  poweroff -f
  ;;
esac

cryptsetup open --key-file /key /dev/vda1 root
mount -t ext4 /dev/mapper/root /newroot
for dir in dev proc sys run; do mount --move /$dir /newroot/$dir; done
exec switch_root /newroot /lib/systemd/systemd
