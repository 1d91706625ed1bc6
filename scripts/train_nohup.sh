#!/usr/bin/env bash
# Trains in a session of its own: closing the terminal, or the connection, does not touch it.
#
#   scripts/train_nohup.sh RECIPE [key=value ...]
#
# IIS_LOGS says where the log and the pid file go (default: logs/ in the current folder).
set -euo pipefail

if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
    echo "usage: $0 RECIPE [key=value ...]" >&2
    exit 2
fi

project=$(cd "$(dirname "$0")/.." && pwd)
kit=$project/.venv/bin/iis-finetune
if [[ ! -x $kit ]]; then
    kit=$(command -v iis-finetune) || {
        echo "iis-finetune is not installed: run 'make setup' in a clone, or activate the environment that has it" >&2
        exit 3
    }
fi

logs=${IIS_LOGS:-logs}
mkdir -p "$logs"
name=$(basename "${1%.yaml}" | tr -c 'A-Za-z0-9_.\n-' '_')-$(date +%Y%m%d-%H%M%S)-$$
log=$logs/$name.log
pid_file=$logs/$name.pid

# Wrong input shows here, at once, and not in a log that nobody looks at until morning.
"$kit" check "$@" || exit $?

# exec keeps the number: the pid in the file is that of the trainer's own foreground process.
# shellcheck disable=SC2016 # expanded by the inner shell
setsid --fork bash -c 'echo $$ >"$1"; exec "${@:2}"' session "$pid_file" "$kit" train "$@" \
    </dev/null >"$log" 2>&1

for _ in {1..50}; do
    [[ -s $pid_file ]] && break
    sleep 0.1
done
cat <<END
training in the background, process $(cat "$pid_file")
  log:    tail -f '$log'
  pid:    $pid_file
  follow: iis-finetune watch last
  stop:   iis-finetune stop last
END
