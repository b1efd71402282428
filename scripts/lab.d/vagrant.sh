# shellcheck shell=bash
# The lab's hosts as machines that Vagrant makes, of a box that this project need not have built. Sourced by scripts/lab,
# after vm.sh: from the inside they are as its machines are, and everything else is shared with them.
#
# vagrant/Vagrantfile says what they are; with GODWIT_VAGRANT_LAB it leaves them alone, and the lab gives them what its
# own machines get. Their cables begin in taps of libvirt's, which the lab takes off libvirt's bridges and plugs into its
# switch: there they are cut, slowed and stretched as any other's. Vagrant's own network stays, and is the lab's door.

# vagrant CMD…: of this lab's machines only.
vagrant_run() {
  local driver=kvm
  [ "$(lab_fact accel tcg)" = kvm ] || driver=qemu
  (
    cd "$GODWIT_TREE/vagrant" || exit
    exec 8>&- 9>&-
    export VAGRANT_DOTFILE_PATH=$LAB_DIR/vagrant VAGRANT_DEFAULT_PROVIDER=libvirt GODWIT_VAGRANT_LAB
    GODWIT_VAGRANT_LAB=$(lab_cgroup_name)
    export GODWIT_VAGRANT_DRIVER=$driver GODWIT_VAGRANT_OUTSIDE=none
    GODWIT_VAGRANT_MEMORY=$(lab_fact memory 1536) GODWIT_VAGRANT_CPUS=$(lab_fact cpus 1)
    export GODWIT_VAGRANT_MEMORY GODWIT_VAGRANT_CPUS
    vagrant "$@" </dev/null
  )
}
vagrant_virsh() { virsh --quiet --connect qemu:///system "$@" </dev/null; }
vagrant_domain() { echo "$(lab_cgroup_name)-$1"; }

vagrant_check_machine() {
  local tool
  vm_check_machine
  for tool in vagrant virsh; do
    command -v "$tool" >/dev/null || die "$tool is missing: run scripts/setup --vagrant"
  done
  vagrant_virsh version >/dev/null 2>&1 || die "libvirt does not answer: run 'systemctl start libvirtd'"
}

# vagrant_traces: what of this lab libvirt has.
vagrant_traces() {
  # Nobody else's lab asks libvirt, which it might start by that.
  [ "$(lab_fact backend none)" = vagrant ] || return 0
  {
    vagrant_virsh list --all --name 2>/dev/null | sed 's/^/machine /'
    vagrant_virsh net-list --all --name 2>/dev/null | sed 's/^/network /'
  } | grep " $(lab_cgroup_name)-[a-z]*$" || :
}

# ---- one machine

vagrant_start_host() {
  local host=$1 place=$LAB_DIR/$1 domain pid
  domain=$(vagrant_domain "$host")
  mkdir -p "$(lab_cgroup)/$host/shell"
  rm -f "$place"/{pid,door}
  if [ -e "$place/ssh" ]; then
    vagrant_virsh start "$domain"
    vagrant_plug "$host"
  else
    vagrant_make "$host"
  fi
  pid=$(cat "/run/libvirt/qemu/$domain.pid")
  echo "$pid $(lab_start_time "$pid")" >"$place/pid"
}

# vagrant_make HOST: out of the box, and furnished.
vagrant_make() {
  local host=$1 place=$LAB_DIR/$1 domain
  domain=$(vagrant_domain "$host")
  vagrant_run up "$host" >>"$place/vagrant.log" 2>&1 ||
    die "vagrant did not bring up $host: $(grep -v KProgress "$place/vagrant.log" | tail -n 5)"
  vagrant_run ssh-config "$host" >"$place/ssh.new" 2>>"$place/vagrant.log"
  vagrant_virsh attach-disk "$domain" "$place/pack.tar" vdb --mode readonly --persistent >/dev/null
  [ ! -e "$LAB_DIR/container-images" ] ||
    vagrant_virsh attach-disk "$domain" "$(lab_fact container-images '')" vdc --mode readonly --persistent >/dev/null
  vagrant_plug "$host"
  # Root comes in by the key that Vagrant has made for this machine.
  ssh -F "$place/ssh.new" "$host" sudo sh -s -- "$host" "$(lab_address "$host")" "$(lab_fact slow 1)" \
    <"$GODWIT_TREE/scripts/lab.d/vagrant-host" >>"$place/vagrant.log" 2>&1 ||
    die "$host could not be furnished: $(tail -n 5 "$place/vagrant.log")"
  sed 's/^  User .*/  User root/' "$place/ssh.new" >"$place/ssh"
}

# vagrant_plug HOST: the ends of its cables go into the lab's switch, by the Ethernet addresses that the Vagrantfile gives.
vagrant_plug() {
  local host=$1 number bridge tap
  number=$(lab_number "$host")
  for bridge in lan wire; do
    tap=$(vagrant_virsh domiflist "$(vagrant_domain "$host")" |
      awk -v mac="52:54:00:$(vm_cable "$bridge"):00:0$number" '$5 == mac { print $1 }')
    [ -n "$tap" ] || die "$host has no cable to $bridge: $(vagrant_virsh domiflist "$(vagrant_domain "$host")")"
    ip link set "$tap" netns "$(lab_pid switch)"
    lab_on_switch ip link set "$tap" name "$host-$bridge"
    lab_on_switch ip link set "$host-$bridge" master "$bridge" up
  done
}

vagrant_booted() { timeout "$(patience 5)" "$0" exec "$1" systemctl is-active --quiet lab-host </dev/null >/dev/null 2>&1; }
vagrant_wait_for_boot() { wait_for 90 vagrant_booted "$1" || die "$1 did not boot: nobody opens its door"; }

vagrant_power_off() { vagrant_virsh destroy "$(vagrant_domain "$1")" >/dev/null; }

# vagrant_link HOST up|down
vagrant_link() {
  vagrant_virsh domif-setlink "$(vagrant_domain "$1")" "52:54:00:$(vm_cable lan):00:0$(lab_number "$1")" "$2" >/dev/null
}

# vagrant_clean: what `vagrant destroy` does, also where nobody knows any more what was made.
vagrant_clean() {
  local kind name disk left
  # The disks that the lab has given them are none of libvirt's, and Vagrant stumbles over such.
  while read -r kind name; do
    [ "$kind" = machine ] || continue
    vagrant_virsh destroy "$name" >/dev/null 2>&1 || :
    for disk in vdb vdc; do vagrant_virsh detach-disk "$name" "$disk" --config >/dev/null 2>&1 || :; done
  done < <(vagrant_traces)
  [ ! -d "$LAB_DIR/vagrant" ] || vagrant_run destroy --force >"$LAB_DIR/vagrant.log" 2>&1 ||
    warn "vagrant destroy: $(tail -n 3 "$LAB_DIR/vagrant.log")"
  while read -r kind name; do
    case $kind in
      machine)
        vagrant_virsh undefine "$name" >/dev/null
        vagrant_virsh vol-delete --pool default "$name.img" >/dev/null
        ;;
      network)
        vagrant_virsh net-destroy "$name" >/dev/null 2>&1 || :
        vagrant_virsh net-undefine "$name" >/dev/null
        ;;
    esac
  done < <(vagrant_traces)
  left=$(vagrant_traces)
  [ -z "$left" ] || die "libvirt still has: $left"
}

vagrant_daemon_pid() { vm_daemon_pid "$@"; }
vagrant_daemon_log() { vm_daemon_log "$@"; }
vagrant_start_daemon() { vm_start_daemon "$@"; }
