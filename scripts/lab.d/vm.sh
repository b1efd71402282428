# shellcheck shell=bash
# The lab's hosts as virtual machines, each with a Debian 13, its stock kernel and its systemd. Sourced by
# scripts/lab.
#
# A machine is one QEMU process in the switch's network, where its cables end in taps; it sees no other. Its
# first disk is an overlay over the image that scripts/lab.d/image builds, its second a tar archive with what
# the lab gives it (godwit, configuration, templates), its third has container images and is read-only. The lab
# comes in by ssh over a cable of its own, so that cutting the others is nothing to it.

VM_CACHE=$LAB_CACHE-vm
# The factor by which an emulated processor is slower, as time limits go.
VM_EMULATED=8

vm_check_machine() {
  local tool
  for tool in qemu-system-x86_64 qemu-img ssh mke2fs mmdebstrap; do
    command -v "$tool" >/dev/null || die "$tool is missing: run scripts/setup --vm"
  done
  [ -c /dev/net/tun ] || die "/dev/net/tun is missing: load the module tun (modprobe tun)"
}

# ---- before any starts

# vm_prepare PROGRAM MEMORY CPUS [CRIU…]: images, and what each host is given.
vm_prepare() {
  local program=$1 memory=$2 cpus=$3 image host
  shift 3
  image=$("$GODWIT_TREE/scripts/lab.d/image" "$VM_CACHE")
  echo "$image" >"$LAB_DIR/image"
  echo "$memory" >"$LAB_DIR/memory"
  echo "$cpus" >"$LAB_DIR/cpus"
  vm_acceleration "$image" >"$LAB_DIR/accel"
  if [ "$(lab_fact accel tcg)" = tcg ]; then echo "$VM_EMULATED"; else echo 1; fi >"$LAB_DIR/slow"
  lab_slow
  if [ -n "$program" ]; then
    "$GODWIT_TREE/scripts/lab.d/container-images" "$VM_CACHE" "$image" "$program" >"$LAB_DIR/container-images"
    # Of a debug build only what runs: it is copied, mapped and read by an emulated processor.
    strip --strip-debug -o "$LAB_DIR/godwit" "$program" 2>/dev/null || cp "$program" "$LAB_DIR/godwit"
  fi
  for host in "${LAB_HOSTS[@]}"; do
    ! lab_is_vm "$host" || vm_pack "$host" "$@"
  done
}

# vm_pack HOST [CRIU…]: the archive that becomes its second disk.
vm_pack() {
  local host=$1 pack=$LAB_DIR/$1/pack criu templates
  shift
  mkdir -p "$pack"/{etc/godwit,etc/systemd/system,usr/local/bin,usr/local/sbin} "$pack$GODWIT_TREE/scripts"
  cp "$LAB_DIR/hosts" "$pack/etc/hosts"
  cp "$LAB_DIR/$host/godwit.toml" "$pack/etc/godwit/"
  cp "$GODWIT_TREE/scripts/lab.d/guest/godwit.service" "$pack/etc/systemd/system/"
  cp -r "$GODWIT_TREE/scripts/lib" "$pack$GODWIT_TREE/scripts/"
  if [ "$(lab_fact backend vm)" = vagrant ]; then
    # Container images are found by these, and were built for the lab's own machines.
    mkdir -p "$pack/etc/apt"
    cp "$(lab_fact image '')/release/sources.list" "$pack/etc/apt/"
    cp "$(lab_fact image '')/release/os-release" "$pack/etc/"
  fi
  templates=${GODWIT_LAB_TEMPLATES:-$GODWIT_TREE/rootfs-templates}
  mkdir -p "$pack$templates"
  # As they are: modes, links and device nodes of a template's tree are part of it.
  cp -a "$templates/." "$pack$templates/"
  [ ! -e "$LAB_DIR/godwit" ] || install -m 755 "$LAB_DIR/godwit" "$pack/usr/local/bin/godwit"
  for criu; do
    case $criu in
      "$host="*) install -m 755 "${criu#*=}" "$pack/usr/local/sbin/criu" ;;
      *=*) ;;
      *) install -m 755 "$criu" "$pack/usr/local/sbin/criu" ;;
    esac
  done
  (cd "$pack" && tar --owner=0 --group=0 -cf ../pack.tar -- *)
  rm -rf "$pack"
}

# vm_acceleration IMAGE: kvm where KVM runs a stock kernel, which the mere device does not tell; else tcg. The
# answer is good until this machine boots again.
vm_acceleration() {
  local known=$VM_CACHE/accel boot console
  if [ -n "${GODWIT_LAB_ACCEL:-}" ]; then
    echo "$GODWIT_LAB_ACCEL"
    return
  fi
  boot=$(cat /proc/sys/kernel/random/boot_id)
  if ! grep -qs "^$boot " "$known"; then
    console=$(mktemp)
    if vm_kvm_runs "$1" "$console" 2>/dev/null; then
      echo "$boot kvm" >"$known"
    else
      echo "$boot tcg" >"$known"
    fi
    rm -f "$console"
  fi
  cut -d' ' -f2 "$known"
}

vm_kvm_runs() {
  [ -w /dev/kvm ] || return 1
  # A shell of its own, which says where nobody hears it that QEMU was aborted.
  (
    timeout 20 qemu-system-x86_64 -accel kvm -cpu host -M q35 -m 256 -nodefaults -display none -no-reboot \
      -serial "file:$2" -kernel "$1/vmlinuz" -initrd "$1/probe" -append "console=ttyS0 panic=-1"
    true
  ) >/dev/null 2>&1
  grep -q "a stock kernel runs" "$2"
}

# ---- one machine

vm_door() { echo "10.99.0.$(lab_number "$1")"; }

# The ends of its cables, and the switch's end of the lab's own.
vm_plug() {
  local host=$1 bridge
  if ! lab_on_switch ip link show door >/dev/null 2>&1; then
    lab_on_switch ip link add door up type bridge forward_delay 0 stp_state 0 mcast_snooping 0
    lab_on_switch ip address add 10.99.0.254/24 dev door
  fi
  for bridge in lan wire door; do
    lab_on_switch ip link show "$host-$bridge" >/dev/null 2>&1 && continue
    lab_on_switch ip tuntap add "$host-$bridge" mode tap vnet_hdr
    lab_on_switch ip link set "$host-$bridge" master "$bridge" up
  done
}

vm_start_host() {
  local host=$1 place=$LAB_DIR/$1 image cgroup switch pid
  cgroup=$(lab_cgroup)/$host/shell
  switch=$(lab_pid switch) || die "the lab's switch is down: run 'scripts/lab up'"
  image=$(lab_fact image '')
  mkdir -p "$cgroup"
  rm -f "$place"/{pid,door,monitor}
  [ ! -e "$place/console.log" ] || cat "$place/console.log" >>"$place/console-before.log"
  : >"$place/console.log"
  [ -e "$place/disk.qcow2" ] ||
    qemu-img create -q -f qcow2 -F raw -b "$image/base.raw" "$place/disk.qcow2"
  vm_plug "$host"
  (
    exec 8>&- 9>&-
    cd "$place" || exit
    pid=$BASHPID
    echo "$pid" >"$cgroup/cgroup.procs"
    echo "$pid $(lab_start_time "$pid")" >pid.new
    mv pid.new pid
    vm_command "$host" "$image"
    exec setsid nsenter --target "$switch" --net -- "${machine[@]}"
  ) </dev/null >>"$place/qemu.log" 2>&1 &
  disown
  wait_for 10 test -s "$place/pid" || die "$host did not start: $(tail -n 5 "$place/qemu.log")"
}

# vm_command HOST IMAGE: leaves QEMU's command line in $machine. Few devices, since each costs its probing.
vm_command() {
  local host=$1 image=$2 kernel accel number bridge words
  accel=$(lab_fact accel tcg) number=$(lab_number "$host")
  machine=(qemu-system-x86_64 -name "$host" -M q35 -m "$(lab_fact memory 1536)" -smp "$(lab_fact cpus 1)" -nodefaults -no-user-config
    -display none -serial "file:console.log" -monitor "unix:monitor,server=on,wait=off")
  if [ "$accel" = kvm ]; then
    machine+=(-accel kvm -cpu host)
  else
    machine+=(-accel "tcg,thread=multi,tb-size=1024" -cpu "max,la57=off")
    # QEMU finds what it has translated by the address it runs at: at another address it is translated again.
    words="norandmaps "
  fi
  words+="console=ttyS0 quiet loglevel=4 rw net.ifnames=0 mitigations=off tsc=reliable no_timer_check nowatchdog"
  words+=" audit=0 apparmor=0 raid=noautodetect cryptomgr.notests systemd.show_status=0 panic=-1"
  words+=" lab.host=$host lab.lan=$(lab_address "$host") lab.door=$(vm_door "$host")"
  kernel=$image
  [ ! -e "$LAB_DIR/$host/older-kernel" ] || kernel=$image/older
  machine+=(-kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" -append "$words"
    # A cut of the power loses what the machine has not flushed, and this machine's own disk need not wait for it.
    -drive "file=$LAB_DIR/$host/disk.qcow2,if=virtio,format=qcow2,cache=unsafe,discard=unmap"
    -drive "file=$LAB_DIR/$host/pack.tar,if=virtio,format=raw,readonly=on")
  [ ! -e "$LAB_DIR/container-images" ] ||
    machine+=(-drive "file=$(lab_fact container-images ''),if=virtio,format=raw,readonly=on")
  for bridge in lan wire door; do
    machine+=(-netdev "tap,id=$bridge,ifname=$host-$bridge,script=no,downscript=no"
      -device "virtio-net-pci,netdev=$bridge,id=nic-$bridge,mac=52:54:00:$(vm_cable "$bridge"):00:0$number,romfile=")
  done
}

vm_cable() {
  case $1 in
    lan) echo 77 ;;
    wire) echo 88 ;;
    door) echo 99 ;;
  esac
}

vm_wait_for_boot() {
  local host=$1
  wait_for 60 vm_booted_or_died "$host" || :
  if ! vm_booted "$host"; then
    tail -n 20 "$LAB_DIR/$host/qemu.log" "$LAB_DIR/$host/console.log" >&2
    die "$host did not boot: the end of its console is above"
  fi
}

vm_booted() { grep -aq "lab: $1 is up after" "$LAB_DIR/$1/console.log" && lab_pid "$1" >/dev/null; }
vm_booted_or_died() { vm_booted "$1" || ! lab_pid "$1" >/dev/null; }

# vm_enter HOST CMD…: becomes a CMD there. The connection is shared, and everything of it here is in the host's
# cgroup: a power cut ends it at once.
vm_enter() {
  local host=$1 switch words=() name terminal=-T remote options
  shift
  switch=$(lab_pid switch) || return 1
  while read -r name; do
    case $name in
      GODWIT_LAB_* | GODWIT_TREE | GODWIT_BIN | GODWIT_LOGS | GODWIT_SLOW) ;;
      GODWIT_* | RUST_*) words+=("$name=${!name}") ;;
    esac
  done < <(compgen -e)
  [ ! -t 0 ] || terminal=-t
  printf -v remote '%q ' env LAB_HOST="$host" "${words[@]}" "$@"
  printf -v remote 'cd %q 2>/dev/null || cd /; exec %s' "$PWD" "$remote"
  echo "$BASHPID" >"$(lab_cgroup)/$host/shell/cgroup.procs"
  cd "$LAB_DIR/$host" || return 1
  options=(-q "$terminal" -o ControlMaster=auto -o ControlPath=door -o ControlPersist=yes -o BatchMode=yes
    -o ConnectTimeout="$(patience 5)" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
    -o ServerAliveInterval=15 -o ServerAliveCountMax=8)
  [ "$(lab_fact backend vm)" != vagrant ] || exec ssh -F ssh "${options[@]}" "$host" -- "$remote"
  exec nsenter --target "$switch" --net -- ssh -F none "${options[@]}" -i "$(lab_fact image '')/key" \
    "root@$(vm_door "$host")" -- "$remote"
}

# vm_link HOST up|down: as if the cable of its first network card were pulled; the machine sees it.
vm_link() {
  local state=on
  [ "$2" = up ] || state=off
  (cd "$LAB_DIR/$1" && python3 "$GODWIT_TREE/scripts/lab.d/monitor.py" monitor "set_link nic-lan $state")
}

# ---- its daemon, a service of its systemd

vm_daemon_pid() {
  local pid
  pid=$(lab_on "$1" systemctl show --property MainPID --value godwit </dev/null 2>/dev/null) || return 1
  [ "${pid:-0}" != 0 ] || return 1
  echo "$pid"
}

vm_daemon_log() { lab_on "$1" journalctl --no-pager --output cat --unit godwit </dev/null; }

# With the variables that a daemon started here would have.
vm_start_daemon() {
  # shellcheck disable=SC2016 # for the shell on the host
  lab_on "$1" sh -c 'env | grep -E "^(GODWIT|RUST)_" >/etc/godwit/environment
    systemctl reset-failed godwit 2>/dev/null; systemctl start godwit' </dev/null && daemon_answers "$1"
}
