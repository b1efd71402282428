# shellcheck shell=bash
# What the demo and the scenarios share: a fresh lab that is gone at the end, short names for what one does
# on its hosts, and checks that say what they expected. Sourced after base.sh.

LAB=$GODWIT_TREE/scripts/lab
CLIENT=$GODWIT_TREE/scripts/lib/redis_client.py

skip() {
  say "SKIP: $*"
  exit 77
}

fail() {
  warn "FAILED: $*"
  exit 1
}

# open_lab DIR [ARG…]: a fresh lab in a directory of its own, and a scratch directory in $scratch; both go
# when the script ends, however it ends. GODWIT_LAB_BACKEND says of which kind its hosts are.
open_lab() {
  export GODWIT_LAB_DIR=$1
  shift
  exec 8>"/run/lock/$(basename "$GODWIT_LAB_DIR").user.lock"
  flock -n 8 || die "another script uses the lab in $GODWIT_LAB_DIR"
  scratch=$(mktemp -d)
  trap close_lab EXIT
  trap 'exit 130' INT TERM HUP
  "$LAB" down 8>&-
  "$LAB" up "$@" 8>&-
  lab_slow
}

# Keeps what tells why, when the script failed, and never hides that it did.
close_lab() {
  local status=$?
  trap - EXIT
  if [ "$status" != 0 ] && [ "$status" != 77 ] && [ -n "${GODWIT_LOGS:-}" ]; then
    mkdir -p "$GODWIT_LOGS"
    cp -r "$scratch" "$GODWIT_LOGS/scratch" 2>/dev/null || :
    "$LAB" collect "$GODWIT_LOGS" 8>&- || :
    warn "logs: $GODWIT_LOGS"
  fi
  if "$LAB" down 8>&-; then
    say "nothing is left of the lab"
  elif [ "$status" = 0 ]; then
    status=1
  fi
  rm -rf "$scratch"
  exit "$status"
}

on() { "$LAB" exec "$@" 8>&-; }
godwit_on() {
  local host=$1
  shift
  on "$host" godwit "$@"
}

# refused TEXT CMD…: CMD fails and its message has TEXT.
refused() {
  local text=$1 out
  shift
  if out=$("$@" 2>&1); then fail "this succeeded, and a refusal with '$text' was expected: $*"; fi
  grep -qiF -- "$text" <<<"$out" || fail "the refusal of '$*' does not say '$text': $out"
}

# inspect HOST NAME FILTER: a field of the container's status.
inspect() { godwit_on "$1" inspect "$2" --format json | jq -r "$3"; }

# state_on HOST NAME: running, stopped, …; 'absent' when the host does not know it.
state_on() {
  godwit_on "$1" list --format json | jq -r --arg name "$2" \
    '[.[] | select(.spec.name == $name) | .state][0] // "absent"'
}

# check_runs_only_on HOST NAME: here, and nowhere else.
check_runs_only_on() {
  local host state
  for host in alpha beta; do
    state=$(state_on "$host" "$2")
    if [ "$host" = "$1" ]; then
      [ "$state" = running ] || fail "$2 is $state on $host, and should run there"
    elif [ "$state" != absent ] && [ "$state" != stopped ]; then
      fail "$2 is $state on $host, and should run on $1 only"
    fi
  done
}

other() { if [ "$1" = alpha ]; then echo beta; else echo alpha; fi; }

# start_redis HOST NAME: built, run and answering; its address is left in $address.
start_redis() {
  godwit_on "$1" template build redis >"$scratch/build.log" 2>&1 ||
    fail "the redis template did not build: $(tail -n 5 "$scratch/build.log")"
  godwit_on "$1" run --template redis --name "$2" >/dev/null
  address=$(inspect "$1" "$2" .spec.lease.address)
  wait_until 20 "redis answers at $address" on client redis-cli -h "$address" ping
}

# wait_until SECONDS WHAT CMD…
wait_until() {
  local deadline=$((SECONDS + $(patience "$1"))) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "not within the time: $what"
    sleep 0.1
  done
}

# The client on its own host: load, run, verify. State and reports are in $scratch.
client() {
  local verb=$1
  shift
  on client python3 "$CLIENT" "$verb" --host "$address" --state "$scratch/keys.json" --patience "$(patience 60)" "$@"
}

# start_client [ARG…]: in the background, until stop_client.
start_client() {
  rm -f "$scratch/stop" "$scratch/ready"
  client run --stop-file "$scratch/stop" --ready-file "$scratch/ready" "$@" \
    >"$scratch/client.json" 2>"$scratch/client.err" &
  client_job=$!
  wait_until 30 "the client's connections are busy" test -s "$scratch/ready"
}

# stop_client: its report is in $scratch/client.json; fails when it saw a fault.
stop_client() {
  local status=0
  touch "$scratch/stop"
  wait "$client_job" || status=$?
  return "$status"
}

# migrate NAME FROM TO NUMBER [ARG…]: $scratch/migration-NUMBER.json has the report and the time around it.
migrate() {
  local name=$1 from=$2 to=$3 number=$4 begin end status=0
  shift 4
  # The default is 30 s, on processors that are none of an emulator's.
  [[ " $* " = *" --timeout "* ]] || set -- "$@" --timeout "$(patience 30)s"
  begin=$(date +%s.%N)
  godwit_on "$from" migrate "$name" --to "$to" --format json "$@" \
    >"$scratch/report.json" 2>"$scratch/migrate.err" || status=$?
  end=$(date +%s.%N)
  if [ "$status" != 0 ]; then
    warn "godwit migrate $name --to $to ended with status $status:"
    jq -r '.outcome.why // empty' "$scratch/report.json" >&2 || :
    tail -n 5 "$scratch/migrate.err" >&2
    return "$status"
  fi
  # A stream of JSON values: the report is the last.
  jq -s --argjson from "$begin" --argjson to "$end" '{"begin": $from, "end": $to, "report": last}' \
    "$scratch/report.json" >"$scratch/migration-$number.json"
}
