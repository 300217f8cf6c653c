# The first process of a machine: machine.sh DEBIAN OWN. Mounts are its own and
# go with it. The Debian is read-only; all that changes lies in OWN and in /tmp.
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/tmp"
mount --bind "$2/windows" "$1/root/windows"
exec chroot "$1" /bin/sh -c '
  # Windows stays on while a program of its user runs: here one that waits for
  # a line that never comes.
  tail -f /dev/null | /usr/lib/wine/wine64 cmd.exe >/tmp/user 2>&1 &
  /usr/lib/wine/wine64 wineboot >/tmp/boot 2>&1 || { cat /tmp/boot; exit 1; }
  echo "@@ on"
  # What has lost its parent is ours: wait for whoever ends.
  while :; do sleep 3600 & wait $!; done'
