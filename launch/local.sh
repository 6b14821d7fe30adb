#!/usr/bin/env bash
# Train as several processes on this machine; usage() says how. Works with bash 3.2 (macOS) too.
set -uo pipefail

usage() {
  cat <<'END'
usage: launch/local.sh N --config FILE [arguments of jaxlm.train]

Train as N processes on this machine. They split its GPUs evenly, or those in CUDA_VISIBLE_DEVICES
(-1: none); without GPUs, --devices M gives each process M emulated CPU devices. On Ctrl-C or
SIGTERM all save and end (exit code 75). When a process fails, the others have JAXLM_GRACE_SECONDS
(30) to end, and its code is returned. PYTHON is the Python to use.
END
}

say() { echo "launch/local.sh: $*" >&2; }

fail() {
  say "$1"
  exit 2
}

case ${1:-} in
  -h | --help) usage && exit ;;
  '' | 0* | *[!0-9]*) usage >&2 && exit 2 ;;
esac
[ $# -gt 1 ] || { usage >&2 && exit 2; }
processes=$1
shift
grace=${JAXLM_GRACE_SECONDS:-30}
case $grace in
  *[!0-9]*) fail "JAXLM_GRACE_SECONDS must be a whole number of seconds, got '$grace'" ;;
esac
stopped=75 # exit code of jaxlm.train: stopped by a signal, saved

# The GPUs that CUDA would use. CUDA reads CUDA_VISIBLE_DEVICES up to the first name that is none.
gpus=()
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  IFS=', ' read -r -a named <<<"$CUDA_VISIBLE_DEVICES,none"
  for gpu in "${named[@]}"; do
    case $gpu in [0-9]* | GPU-* | MIG-*) gpus+=("$gpu") ;; *) break ;; esac
  done
else
  while read -r line; do
    case $line in "GPU "*) gpus+=("${#gpus[@]}") ;; esac
  done < <(nvidia-smi -L 2>/dev/null)
fi
share=$((${#gpus[@]} / processes))
[ $((share * processes)) -eq ${#gpus[@]} ] || {
  say "${#gpus[@]} GPU(s) can't be split evenly among $processes processes;" \
    "CUDA_VISIBLE_DEVICES chooses which to use (-1: none)"
  exit 2
}

# A port on which nobody listens, below those that systems give to outgoing connections.
while port=$((20000 + RANDOM % 12000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done

train() {
  local process=$1
  shift
  if [ "$share" -gt 0 ]; then
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]:process * share:share}")
    export CUDA_VISIBLE_DEVICES
  fi
  exec "${PYTHON:-python}" -m jaxlm.train "$@" \
    "runtime.coordinator=127.0.0.1:$port" "runtime.processes=$processes" "runtime.process=$process"
}

# Read the ids of the processes. If the pipe closes without "done", this script was killed: end
# them.
guard() {
  trap '' HUP INT QUIT TERM
  local pid waited alive pids=()
  while read -r pid; do
    [ "$pid" != "done" ] || return
    pids+=("$pid")
  done
  [ ${#pids[@]} -gt 0 ] || return
  kill -TERM "${pids[@]}"
  for ((waited = 0; waited < grace; waited++)); do
    alive=false
    for pid in "${pids[@]}"; do kill -0 "$pid" && alive=true; done
    $alive || break
    sleep 1
  done
  for pid in "${pids[@]}"; do kill -KILL "-$pid"; done
}

pids=()  # of each process
codes=() # of each process, once it has ended

# Send a signal to the processes that still run.
signal() {
  local i
  for ((i = 0; i < ${#pids[@]}; i++)); do
    [ -n "${codes[i]:-}" ] || kill "-$1" "${pids[i]}" 2>/dev/null
  done
}

stopping=false
interrupts=0
# shellcheck disable=SC2329 # the traps call it
stop() {
  stopping=true
  signal "$1"
}
# The second Ctrl-C ends without saving, as it does in a run of one process.
# shellcheck disable=SC2329
interrupt() {
  interrupts=$((interrupts + 1))
  case $interrupts in 1) stop TERM ;; 2) stop INT ;; *) stop KILL ;; esac
}

# Job control gives each process, and the guard, a group of its own: Ctrl-C reaches this script
# alone, and the children of a process end with it. It is on only while one is started, since
# commands in the foreground would get the terminal.
directory=$(mktemp -d) || fail "can't make a folder in ${TMPDIR:-/tmp}"
mkfifo "$directory/pipe" || fail "can't make a pipe in $directory"
set -m
guard <"$directory/pipe" >/dev/null 2>&1 &
set +m
guard=$!
exec 9>"$directory/pipe"
rm -r "$directory"

trap 'stop TERM' HUP TERM
trap interrupt INT
for ((process = 0; process < processes; process++)); do
  set -m
  train "$process" "$@" </dev/null 9>&- &
  set +m
  pids+=($!)
  echo $! >&9
done
if $stopping; then signal TERM; fi # for processes that were started after the signal

left=$processes
result=0
deadline=
while [ "$left" -gt 0 ]; do
  sleep 0.2
  for ((process = 0; process < processes; process++)); do
    if [ -n "${codes[process]:-}" ] || kill -0 "${pids[process]}" 2>/dev/null; then continue; fi
    wait "${pids[process]}"
    code=$?
    codes[process]=$code
    left=$((left - 1))
    kill -KILL "-${pids[process]}" 2>/dev/null # its children
    if [ "$code" -ne 0 ] && { [ "$result" -eq 0 ] || [ "$result" -eq "$stopped" ]; }; then
      result=$code
      failed=$process
      # There is no limit for processes that save: they end by themselves.
      [ "$code" -eq "$stopped" ] || deadline=$((SECONDS + grace))
      if ! $stopping && [ "$code" -gt 128 ] && name=$(kill -l "$code" 2>/dev/null); then
        say "process $process was ended by SIG$name" 2>&3
      fi
    fi
  done
  if [ -n "$deadline" ] && [ "$left" -gt 0 ] && [ "$SECONDS" -gt "$deadline" ]; then
    if [ "${ending:-}" = TERM ]; then ending=KILL; else ending=TERM; fi
    say "process $failed has ended with code $result; SIG$ending for the others" 2>&3
    signal "$ending"
    deadline=$((SECONDS + (grace < 10 ? grace : 10)))
  fi
done 3>&2 2>/dev/null # bash would print its own messages about ended jobs
echo "done" >&9
exec 9>&-
wait "$guard"
exit "$result"
