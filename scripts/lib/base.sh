# shellcheck shell=bash
# What every script here starts with: where the tree is, how to speak, how to stop, who builds.
# Sourced, never run.

GODWIT_TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export GODWIT_TREE

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
  warn "${0##*/}: $*"
  exit 1
}

# A heading, so that a long run can be followed.
step() { printf '\n== %s\n' "$*"; }

need_root() {
  [ "$(id -u)" = 0 ] || die "needs root: try 'sudo $0'"
}

# version_at_least HAVE WANT: dotted versions, as Debian compares them.
version_at_least() { dpkg --compare-versions "$1" ge "$2"; }

# The mirror this machine takes Debian from.
mirror() {
  local uri
  # shellcheck disable=SC2016 # apt's own variable
  uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    grep -E '^https?://.*/debian/?$' | head -n 1 || :)
  echo "${uri:-http://deb.debian.org/debian}"
}

# The mount point of the cgroup v2 hierarchy on this machine, pure or hybrid.
cgroup2_mount() {
  local mount
  mount=$(awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i + 1) == "cgroup2") { print $5; exit } }' \
    /proc/self/mountinfo)
  [ -n "$mount" ] || die "this machine has no cgroup v2 hierarchy mounted; boot it with systemd.unified_cgroup_hierarchy=1"
  printf '%s\n' "$mount"
}

# The home of whoever called sudo, where that is not root: the toolchain and the tree are theirs.
builder_home() {
  if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    getent passwd "$SUDO_USER" | cut -d: -f6
  fi
}

# sudo forgets where rustup has put cargo; look again where it usually is.
find_cargo() {
  local home
  for home in "$(builder_home)" "${HOME:-/root}"; do
    if [ -n "$home" ] && [ -x "$home/.cargo/bin/cargo" ] && ! command -v cargo >/dev/null; then
      PATH=$home/.cargo/bin:$PATH
    fi
  done
  command -v cargo >/dev/null
}

# as_builder CMD…: as the user who called sudo, so that the tree stays theirs.
as_builder() {
  local home
  home=$(builder_home)
  if [ -n "$home" ]; then
    runuser -u "$SUDO_USER" -- env HOME="$home" PATH="$PATH" "$@"
  else
    "$@"
  fi
}

# build_release: leaves the binary's path in GODWIT_BIN, unless the caller brought one.
build_release() {
  if [ -n "${GODWIT_BIN:-}" ]; then
    return
  fi
  find_cargo || die "cargo is missing: run scripts/setup"
  (cd "$GODWIT_TREE" && as_builder cargo build --release --locked --quiet) || return 1
  GODWIT_BIN=${CARGO_TARGET_DIR:-$GODWIT_TREE/target}/release/godwit
  export GODWIT_BIN
}

# The factor by which this lab is slower than a machine of its own, for every time limit.
slow=1
lab_slow() {
  slow=${GODWIT_SLOW:-$(cat "${GODWIT_LAB_DIR:-/var/tmp/godwit-lab}/slow" 2>/dev/null || echo 1)}
}

# patience SECONDS: how long to wait in this lab for what takes at most that long elsewhere.
patience() { echo $(($1 * slow)); }
