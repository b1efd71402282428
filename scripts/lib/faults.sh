# shellcheck shell=bash
# How scenarios catch a migration at a phase, and find where its container is afterwards. Sourced after scenario.sh.
#
# A test file on a host, /run/godwit/failpoint, holds "SIDE PHASE" (source or destination, and a phase's name). A daemon
# that comes to the begin of this phase, on this side, writes /run/godwit/failpoint.reached and waits until the failpoint
# file is gone. Only a daemon with GODWIT_FAILPOINTS=1 in its environment looks.

export GODWIT_FAILPOINTS=1
# shellcheck disable=SC2034 # for those who source this
phases=(negotiate preflight storage memory freeze dump residual restore handover settle)
point=/run/godwit/failpoint

# arm HOST SIDE PHASE
# shellcheck disable=SC2016 # for the shell on the host
arm() { on "$1" sh -c 'rm -f "$1.reached"; echo "$2 $3" >"$1.new"; mv "$1.new" "$1"' sh "$point" "$2" "$3"; }
disarm() { on "$1" rm -f "$point" "$point.reached"; }

# wait_for_point HOST JOB: until the daemon stands at the failpoint; fails when the migration ended before.
wait_for_point() {
  until on "$1" test -e "$point.reached"; do
    kill -0 "$2" 2>/dev/null || return 1
    sleep 0.05
  done
}

# copies NAME: the hosts on which it runs, or would on the next occasion.
copies() {
  local host state
  for host in alpha beta; do
    state=$(state_on "$host" "$1" 2>/dev/null || echo unknown)
    case $state in
      running) echo "$host" ;;
      absent | stopped) ;;
      *) echo "$host($state)" ;;
    esac
  done
}

settled() { [[ $(copies "$1") =~ ^(alpha|beta)$ ]]; }

# settle NAME WHEN: exactly one copy runs before long; which, is in $here.
settle() {
  local deadline=$((SECONDS + $(patience 40)))
  until settled "$1"; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$2: not one copy runs, but: $(copies "$1" | xargs)"
    sleep 0.2
  done
  # shellcheck disable=SC2034 # for those who source this
  here=$(copies "$1")
}
