# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used by those who source it
# The lab: its places, its hosts, the way into them. Sourced after base.sh.
#
# A host is one process. With the netns backend it is pid 1 of a pid namespace, with net, mount, uts, ipc and
# cgroup namespaces of its own; with the vm and vagrant backends it is a QEMU, with a kernel and a systemd of its own.
# Nothing is pinned anywhere: kill that process and all of it is gone, as after a power cut. The switch is one
# more such process that has only a network, and the client is namespaces with every backend.
#
#                    switch
#          ┌──────────────────────────┐
#   eth0 ──┤ lan   10.77.0.0/24       │   daemons speak to each other
#   eth1 ──┤ wire  10.88.0.0/24       │   containers and clients speak here
#   lab0 ──┤ door  10.99.0.0/24       │   virtual machines only: the lab's own way into them
#          └──────────────────────────┘

LAB_DIR=${GODWIT_LAB_DIR:-/var/tmp/godwit-lab}
LAB_CACHE=${GODWIT_LAB_CACHE:-/var/cache/godwit-lab}
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

# What `up` has written down for the commands that come after it.
lab_fact() { cat "$LAB_DIR/$1" 2>/dev/null || echo "$2"; }
read -ra LAB_HOSTS <<<"$(lab_fact names "alpha beta client")"
lab_slow

lab_number() {
  case $1 in
    alpha) echo 1 ;;
    beta) echo 2 ;;
    client) echo 3 ;;
    gamma) echo 4 ;;
    *) return 1 ;;
  esac
}

lab_address() { echo "10.77.0.$(lab_number "$1")"; }
lab_has_host() { [[ " ${LAB_HOSTS[*]} " == *" $1 "* ]]; }
lab_has_daemon() { [[ $1 =~ ^(alpha|beta|gamma)$ ]]; }
lab_is_vm() { lab_has_daemon "$1" && [ "$(lab_fact backend netns)" != netns ]; }

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

# lab_enter HOST CMD…: becomes CMD on that host. Everything started this way goes down with the host.
lab_enter() {
  lab_pid "$1" >/dev/null || die "$1 is down: run 'scripts/lab up'"
  if lab_is_vm "$1"; then vm_enter "$@"; else netns_enter "$@"; fi
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
  local tries=$(($(patience "$1") * 20))
  shift
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.05
  done
}
