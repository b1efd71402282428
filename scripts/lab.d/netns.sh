# shellcheck shell=bash
# The lab's hosts as namespaces of this machine; its switch and its client are that with either backend.
# Sourced by scripts/lab.

# netns_enter HOST CMD…: becomes CMD on that host, in the host's cgroup.
netns_enter() {
  local host=$1 pid cgroup path=$PATH
  shift
  pid=$(lab_pid "$host") || return 1
  cgroup=$(lab_cgroup)/$host/shell
  echo "$BASHPID" >"$cgroup/cgroup.procs"
  [ ! -d "/proc/$pid/root$LAB_INSIDE/bin" ] || path=$LAB_INSIDE/bin:$path
  local env=(PATH="$path" LAB_HOST="$host")
  if lab_has_daemon "$host"; then
    # The hosts have no way out of the lab; package downloads go through a proxy on their loopback.
    env+=({http,https}_proxy="http://127.0.0.1:$LAB_PROXY_PORT" no_proxy="localhost,127.0.0.1")
  fi
  exec nsenter --target "$pid" --mount --net --pid --uts --ipc --cgroup -- \
    env -C "$(netns_directory "$pid")" "${env[@]}" "$@"
}
LAB_PROXY_PORT=3142

# The caller's directory, where the host has it too.
netns_directory() {
  if [ -d "/proc/$1/root$PWD" ]; then echo "$PWD"; else echo /; fi
}

# The controllers this kernel has to give, passed down to where containers are.
delegate() {
  local controller
  for controller in cpu memory pids io; do
    { echo "+$controller" >"$1/cgroup.subtree_control"; } 2>/dev/null || :
  done
}

# Moves every process of a cgroup into its child `shell`: one that hands controllers down may have none.
vacate() {
  local pid
  while read -r pid; do
    { echo "$pid" >"$1/shell/cgroup.procs"; } 2>/dev/null || :
  done < <(cat "$1/cgroup.procs")
}

# netns_start_host HOST [BINARY]: its namespaces, its view of the machine, its cables.
netns_start_host() {
  local host=$1 cgroup cache='' spaces=(--mount --net --pid) binary=${2:-} pid
  cgroup=$(lab_cgroup)/$host
  mkdir -p "$cgroup/shell"
  rm -f "$LAB_DIR/$host/pid"
  [ "$host" = switch ] || spaces+=(--uts --ipc --cgroup)
  if lab_has_daemon "$host"; then
    cache=$LAB_CACHE
    echo "$binary" >"$LAB_DIR/program"
  else
    binary=''
  fi
  (
    exec 9>&-
    echo "$BASHPID" >"$cgroup/cgroup.procs" # here, because this becomes the root of its cgroup namespace
    exec setsid unshare "${spaces[@]}" --fork --kill-child -- \
      "$GODWIT_TREE/scripts/lib/host-init" "$host" "$(lab_cgroup_name)" "$LAB_DIR" "$cache" "$binary"
  ) </dev/null >>"$LAB_DIR/$host/init.log" 2>&1 &
  disown
  wait_for 10 test -s "$LAB_DIR/$host/pid" || die "$host did not start: $(tail -n 5 "$LAB_DIR/$host/init.log")"
  vacate "$cgroup"
  delegate "$cgroup"
  pid=$(lab_pid "$host") || die "$host started and died: $(tail -n 5 "$LAB_DIR/$host/init.log")"
  [ "$host" = switch ] || plug "$host" "$pid"
}

start_switch() {
  netns_start_host switch
  lab_on_switch sh -c 'echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6' 2>/dev/null || :
  local bridge
  for bridge in lan wire; do
    lab_on_switch ip link add "$bridge" up type bridge forward_delay 0 stp_state 0 mcast_snooping 0
  done
}

# plug HOST PID: eth0 into lan, eth1 into wire. A host that comes back has the Ethernet addresses that it had.
plug() {
  local host=$1 pid=$2 bridge number
  number=$(lab_number "$host")
  # Of a host that was here before, the kernel may still be taking the network apart.
  for bridge in lan wire; do lab_on_switch ip link delete "$host-$bridge" 2>/dev/null || :; done
  lab_on_switch ip -batch - <<CABLES
link add $host-lan type veth peer name eth0 address 52:54:00:77:00:0$number netns $pid
link add $host-wire type veth peer name eth1 address 52:54:00:88:00:0$number netns $pid
link set $host-lan master lan up
link set $host-wire master wire up
CABLES
  nsenter --target "$pid" --net ip -batch - <<ADDRESSES
address add $(lab_address "$host")/24 dev eth0
link set eth0 up
link set eth1 up
ADDRESSES
  # The daemons' eth1 becomes a port of their bridge and has no address of its own.
  [ "$host" != client ] || nsenter --target "$pid" --net ip address add 10.88.0.2/24 dev eth1
}

netns_link() { lab_on_switch ip link set "$1-lan" "$2"; }

# The way to Debian's mirrors for builds of container images.
start_proxy() {
  local pids=() host
  for host in "${LAB_HOSTS[@]}"; do
    if lab_has_daemon "$host" && ! lab_is_vm "$host"; then pids+=("$(lab_pid "$host")"); fi
  done
  [ ${#pids[@]} -gt 0 ] || return 0
  (
    exec 9>&-
    mkdir -p "$(lab_cgroup)/proxy"
    echo "$BASHPID" >"$(lab_cgroup)/proxy/cgroup.procs"
    exec setsid python3 "$GODWIT_TREE/scripts/lib/apt_way_out.py" "$LAB_PROXY_PORT" "${pids[@]}"
  ) </dev/null >>"$LAB_DIR/proxy.log" 2>&1 &
  disown
}

netns_daemon_pid() {
  local pid
  pid=$(lab_on "$1" cat "$LAB_INSIDE/daemon.pid" 2>/dev/null) || return 1
  # shellcheck disable=SC2016 # for the shell on the host
  lab_on "$1" sh -c 'tr "\0" " " <"/proc/$1/cmdline" | grep -q "godwit daemon"' sh "$pid" 2>/dev/null || return 1
  echo "$pid"
}

netns_daemon_log() { cat "$LAB_DIR/$1/daemon.log"; }

netns_start_daemon() {
  local host=$1 enterer
  # Every file the daemon holds is opened on its own host: CRIU cannot dump what it inherits otherwise.
  (
    exec 8>&- 9>&-
    # shellcheck disable=SC2016 # for the shell on the host
    lab_enter "$host" setsid bash -c '
      for fd in /proc/self/fd/*; do fd=${fd##*/}; [ "$fd" -le 2 ] || eval "exec $fd>&-" 2>/dev/null; done
      echo $$ >"$0/daemon.pid"
      exec godwit daemon --config /etc/godwit/godwit.toml </dev/null >>"$0/host/daemon.log" 2>&1' \
      "$LAB_INSIDE"
  ) </dev/null >>"$LAB_DIR/$host/daemon.log" 2>&1 &
  enterer=$!
  disown
  wait_for 20 netns_daemon_answers_or_died "$host" "$enterer" && daemon_answers "$host"
}

netns_daemon_answers_or_died() { daemon_answers "$1" || ! kill -0 "$2" 2>/dev/null; }
