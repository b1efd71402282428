# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used by those who source it
# The lab on one kernel: its places, its hosts, the way into them. Sourced after base.sh.
#
# A host is one process, pid 1 of a pid namespace, with net, mount, uts, ipc and cgroup namespaces of its
# own. Nothing is pinned anywhere: kill that process and the kernel takes back all of it, as a power cut
# would. The switch is one more such process that has only a network.
#
#                    switch
#          ┌──────────────────────────┐
#   eth0 ──┤ lan   10.77.0.0/24       │   daemons speak to each other
#   eth1 ──┤ wire  10.88.0.0/24       │   containers and clients speak here
#          └──────────────────────────┘

LAB_DIR=${GODWIT_LAB_DIR:-/var/tmp/godwit-lab}
LAB_CACHE=${GODWIT_LAB_CACHE:-/var/cache/godwit-lab}
LAB_HOSTS=(alpha beta client)
LAB_PEER_PORT=7117
# The path of a host's own tools, inside it.
LAB_INSIDE=/run/lab

# Two labs live side by side as long as their directories differ.
lab_cgroup_name() {
  local sum
  if [ "$LAB_DIR" = /var/tmp/godwit-lab ]; then
    echo godwit-lab
  else
    sum=$(printf %s "$LAB_DIR" | cksum | cut -d' ' -f1)
    echo "godwit-lab-$sum"
  fi
}

lab_cgroup() { echo "$(cgroup2_mount)/$(lab_cgroup_name)"; }

lab_address() {
  case $1 in
    alpha) echo 10.77.0.1 ;;
    beta) echo 10.77.0.2 ;;
    client) echo 10.77.0.3 ;;
    *) return 1 ;;
  esac
}

lab_has_host() { lab_address "$1" >/dev/null; }
lab_has_daemon() { [ "$1" = alpha ] || [ "$1" = beta ]; }

# A process is known by its pid and its start time, so that a number used again is not mistaken for it.
lab_start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  # shellcheck disable=SC2086 # the fields are split on purpose
  set -- $stat
  echo "${20}"
}

# lab_pid HOST: the pid of its first process, as this machine sees it; fails when the host is down.
lab_pid() {
  local pid start
  read -r pid start 2>/dev/null <"$LAB_DIR/$1/pid" || return 1
  [ "$(lab_start_time "$pid")" = "$start" ] || return 1
  echo "$pid"
}

# lab_enter HOST CMD…: becomes CMD on that host. Everything started this way is in the host's cgroup and
# goes down with it.
lab_enter() {
  local host=$1 pid cgroup path=$PATH
  shift
  pid=$(lab_pid "$host") || die "$host is down: run 'scripts/lab up'"
  cgroup=$(lab_cgroup)/$host/shell
  echo "$BASHPID" >"$cgroup/cgroup.procs"
  [ ! -d "/proc/$pid/root$LAB_INSIDE/bin" ] || path=$LAB_INSIDE/bin:$path
  local env=(PATH="$path" LAB_HOST="$host")
  if lab_has_daemon "$host"; then
    # The hosts have no way out of the lab; package downloads go through a proxy on their loopback.
    env+=({http,https}_proxy="http://127.0.0.1:$LAB_PROXY_PORT" no_proxy="localhost,127.0.0.1")
  fi
  exec nsenter --target "$pid" --mount --net --pid --uts --ipc --cgroup -- \
    env -C "$(lab_cwd "$pid")" "${env[@]}" "$@"
}
LAB_PROXY_PORT=3142

# The caller's directory, where the host has it too.
lab_cwd() {
  if [ -d "/proc/$1/root$PWD" ]; then echo "$PWD"; else echo /; fi
}

# lab_on HOST CMD…: the same, and comes back with the exit status.
lab_on() { (lab_enter "$@"); }

# lab_on_switch CMD…: on the switch's network, with this machine's files.
lab_on_switch() {
  local pid
  pid=$(lab_pid switch) || die "the lab's switch is down: run 'scripts/lab up'"
  nsenter --target "$pid" --net -- "$@"
}

# wait_for SECONDS CMD…: until CMD succeeds.
wait_for() {
  local tries=$(($1 * 20))
  shift
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.05
  done
}
