#!/usr/bin/env bash
# Runs the test suite under conditions that its result may not depend on, one after the other, and prints a summary line of each.
#
#   perf/robustness/suite_matrix.sh                         all conditions with .venv, about 15 minutes each on 2 cores
#   perf/robustness/suite_matrix.sh one-core random-2       some of them
#   PYTHONS="a/bin/python b/bin/python" perf/robustness/suite_matrix.sh environments      other environments, each with all that `.[dev]` needs
#   TESTS=tests/training perf/robustness/suite_matrix.sh    a part of the suite
#   WORKERS=0 perf/robustness/suite_matrix.sh               in one process (default: 2, as `make test`)
#
# Logs are in $LOGS (default: a new folder under /tmp). The exit status is the number of conditions that failed.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(realpath -s "${PYTHON:-$root/.venv/bin/python}")
logs=${LOGS:-$(mktemp -d /tmp/suite-matrix-XXXXXX)}
tests=${TESTS:-tests}
mkdir -p "$logs"
failed=0
cd "$root" || exit 1
# torchx and other programs of the environment are looked up on PATH; ham_dist comes from this clone, not from where the environment has it.
export PYTHONPATH=$root PATH=$(dirname "$python"):$PATH

suite() { # NAME COMMAND...: a run whose log is NAME.log
    local name=$1 start=$SECONDS status=0
    shift
    "$@" >"$logs/$name.log" 2>&1 || status=$?
    local summary
    summary=$(grep -E '^(=+ )?[0-9]+ (passed|failed|skipped|deselected|error)' "$logs/$name.log" | tail -1)
    printf '%-14s %s  [exit %s, %s s]\n' "$name" "${summary:-no summary, see $logs/$name.log}" "$status" $((SECONDS - start))
    [ "$status" = 0 ] || failed=$((failed + 1))
}

workers=(--numprocesses "${WORKERS:-2}" --dist loadfile)
pytest=("$python" -m pytest -q -p no:randomly "${workers[@]}")

level() { # NAME CAPABILITY: the kernels that torch and numpy choose for a processor
    if [ "$2" = avx512 ] && ! grep -qw avx512f /proc/cpuinfo; then
        printf '%-14s left out: this processor has no AVX-512\n' "$1"
    else
        suite "$1" env ATEN_CPU_CAPABILITY="$2" "${pytest[@]}" "$tests"
    fi
}

busy() { # Two processes that never rest.
    local spinners=()
    for _ in 1 2; do
        "$python" -c 'while True: pass' &
        spinners+=($!)
    done
    suite busy "${pytest[@]}" "$tests"
    kill "${spinners[@]}"
    wait "${spinners[@]}" 2>/dev/null
}

read_only() { # A user who may write neither to the clone nor to the environment. Needs root.
    local clone
    clone=$(mktemp -d /tmp/suite-clone-XXXXXX)
    git archive HEAD | tar -x -C "$clone"
    chmod -R a+rX,go-w "$clone"
    # HOME and TMPDIR are the user's own; everything else is as an administrator has set it up.
    local own
    own=$(mktemp -d /tmp/suite-nobody-XXXXXX)
    chown nobody "$own"
    suite read-only su nobody -s /bin/bash -c \
        "cd '$clone' && HOME='$own' TMPDIR='$own' PYTHONPATH='$clone' PATH='$PATH' exec '$python' -m pytest -q -p no:randomly ${workers[*]} '$tests'"
    rm -rf "$clone" "$own"
}

environments() {
    local other
    for other in ${PYTHONS:-}; do
        other=$(realpath -s "$other")
        PATH=$(dirname "$other"):$PATH suite "$("$other" -c 'import sys, torch; print("py%d.%d-torch%s" % (*sys.version_info[:2], torch.__version__))')" \
            "$other" -m pytest -q -p no:randomly "${workers[@]}" "$tests"
    done
}

condition() {
    case $1 in
        plain) suite plain "${pytest[@]}" "$tests" ;;
        default | avx2 | avx512) level "$1" "$1" ;;
        one-core) suite one-core taskset -c 0 "${pytest[@]}" "$tests" ;;
        busy) busy ;;
        random-*) suite "$1" "$python" -m pytest -q "${workers[@]}" --randomly-seed="${1#random-}" "$tests" ;;
        read-only) read_only ;;
        environments) environments ;;
        *) echo "unknown condition: $1" >&2; failed=$((failed + 1)) ;;
    esac
}

[ $# -gt 0 ] || set -- plain default avx2 avx512 one-core busy random-1 random-2 random-3 read-only environments
for name in "$@"; do condition "$name"; done
exit "$failed"
