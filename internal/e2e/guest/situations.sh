# Words for the situations: each makes one thing, clean takes all away again.
K=/run/passphrase
echo -n other >/run/other
mkdir -p /srv /home /boot /opt /etc

# luks1|luks2 PARTITION MAPPING [OPTION…] of luksFormat; --header also opens it.
luks() {
  local type=$1 device=/dev/$2 mapping=$3 header=
  shift 3
  [ "$1" != --header ] || header="$1 $2"
  cryptsetup luksFormat -q --type "$type" --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $K "$@" "$device"
  cryptsetup open --key-file $K $header "$device" "$mapping"
}
luks1() { luks luks1 "$@"; }
luks2() { luks luks2 "$@"; }

# integrity PARTITION MAPPING: dm-integrity, which is no encryption.
integrity() { integritysetup format -q --no-wipe "/dev/$1" && integritysetup open --integrity-recalculate "/dev/$1" "$2"; }

# crypt PARTITION MAPPING CIPHER: dm-crypt without a header, with a random key.
crypt() { cryptsetup open -q --type plain --key-file /dev/urandom --cipher "$3" --key-size 512 "/dev/$1" "$2"; }

# volume MAPPING PLACE, plain PARTITION PLACE: a file system.
volume() { mke2fs -F -b 4096 "/dev/mapper/$1" && mount -t ext4 "/dev/mapper/$1" "$2"; }
plain() { mke2fs -F -b 4096 "/dev/$1" && mount -t ext4 "/dev/$1" "$2"; }

swap() { mkswap "$1" && swapon "$1"; }
swapfile() { dd if=/dev/zero of="$1" bs=1M count=2 && chmod 600 "$1" && swap "$1"; }

clean() {
  swapoff -a
  swapoff '/srv/swap file' # BusyBox does not find it by itself
  for point in /srv /home /boot /opt; do umount $point; done
  losetup -d /dev/loop0
  echo 1 >/sys/block/zram0/reset
  for pass in 1 2; do # what lies on another goes first
    for mapping in /sys/class/block/dm-*/dm/name; do
      read -r name <"$mapping" && [ "$name" = root ] || dmsetup remove "$name"
    done
  done
  for partition in 1 2 3 4; do dd if=/dev/zero of=/dev/vdb$partition bs=64k count=2; done
  rm -f /etc/crypttab /etc/key /image /swapfile
}

as_root() { pfoertner-agent evidence --json | tr -s ' \n' ' '; }
as_nobody() { /bin/setpriv --reuid 65534 --regid 65534 --clear-groups pfoertner-agent evidence --json | tr -s ' \n' ' '; }

# show NAME SITUATION AGENT
show() {
  echo "@@ begin $1"
  (set -e; $2) >/run/log 2>&1 || cat /run/log
  $3
  echo
  echo "@@ end $1"
  clean >/run/log 2>&1
}
