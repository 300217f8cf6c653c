# Part of every package's scripts: what they do with the service. dpkg and rpm
# both run them; nothing in them makes an installation fail.

# running_systemd is false in a chroot, a container build, an image.
running_systemd() { [ -d /run/systemd/system ]; }

# service_installed NAME first|upgrade
service_installed() {
  if command -v deb-systemd-helper >/dev/null; then
    deb-systemd-helper unmask "$1.service" >/dev/null
    if deb-systemd-helper --quiet was-enabled "$1.service"; then
      deb-systemd-helper enable "$1.service" >/dev/null
    else
      deb-systemd-helper update-state "$1.service" >/dev/null
    fi
  elif [ "$2" = first ] && command -v systemctl >/dev/null; then
    systemctl enable "$1.service" >/dev/null 2>&1
  fi
  running_systemd || return 0
  systemctl daemon-reload
  # policy-rc.d is obeyed by deb-systemd-invoke.
  if command -v deb-systemd-invoke >/dev/null; then
    deb-systemd-invoke restart "$1.service"
  elif [ "$2" = first ]; then
    systemctl --no-block start "$1.service"
  else
    systemctl --no-block try-restart "$1.service"
  fi
}

# service_leaves NAME: before the program is removed for good.
service_leaves() {
  if running_systemd; then
    if command -v deb-systemd-invoke >/dev/null; then
      deb-systemd-invoke stop "$1.service"
    else
      systemctl stop "$1.service"
    fi
  fi
  if ! command -v deb-systemd-helper >/dev/null && command -v systemctl >/dev/null; then
    systemctl disable "$1.service" >/dev/null 2>&1
  fi
}

# service_left NAME remove|purge: after the program is gone.
service_left() {
  if [ "$2" = purge ] && command -v deb-systemd-helper >/dev/null; then
    deb-systemd-helper purge "$1.service" >/dev/null
    deb-systemd-helper unmask "$1.service" >/dev/null
  fi
  if running_systemd; then systemctl daemon-reload; fi
}
