#!/bin/busybox sh
# The guest's first program: makes an encrypted root and starts the script on it.
/bin/busybox --install -s /bin
export PATH=/bin
# There is no udev: cryptsetup makes its device nodes itself.
export DM_DISABLE_UDEV=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
while read -r module; do insmod "/modules/$module"; done </modules/order
mount -t efivarfs efivarfs /sys/firmware/efi/efivars

echo -n secret >/run/passphrase
cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /run/passphrase /dev/vda1
cryptsetup open --key-file /run/passphrase /dev/vda1 root
mke2fs -F -b 4096 /dev/mapper/root >/dev/null
mount -t ext4 /dev/mapper/root /newroot
cp -a /bin /lib /lib64 /newroot
[ ! -d /usr ] || cp -a /usr /newroot
for dir in proc sys dev run; do
  mkdir /newroot/$dir
  mount --move /$dir /newroot/$dir
done
exec switch_root /newroot /bin/guest-script
