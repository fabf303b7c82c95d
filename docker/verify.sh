#!/usr/bin/env bash
# Check an image from outside: docker/verify.sh [IMAGE]
#
# Looks at what the image declares and holds, starts it, asks for a gradient, watches the health check in both
# directions, stops it. Exits with 0 when all of that is as it should be. Uses docker, podman or buildah, the first
# that works; ENGINE="podman --log-level debug" chooses one, with options. docker and podman run the container as
# hardened as docker-compose.yml does. buildah has no network or process table of its own: NABLAD_PORT says which
# port to use (8421).
set -euo pipefail
cd "$(dirname "$0")"
image=${1:-nablad}
failures=0
LEFTOVERS='/(\.git|pyproject\.toml|tests/conftest\.py|docs/operating\.md)$'
LEFTOVERS+='|^/root/\.cache/|^/opt/nablad/.*/(pip|setuptools)/|^/(build|src)/'

works() { command -v "$1" >/dev/null && "$@" info >/dev/null 2>&1; }
if [ -z "${ENGINE:-}" ]; then
    for ENGINE in docker podman buildah none; do works "$ENGINE" && break; done
fi
[ "$ENGINE" != none ] || { echo "needs a working docker, podman or buildah" >&2; exit 2; }
read -ra engine <<<"$ENGINE"

# What differs between engines: start, inside (beside the server), alone (without one), stop (sets
# code), declared (a field of the image's configuration, as JSON), and so on.
case "$(basename "${engine[0]}")" in
docker | podman)
    start() {
        container=$("${engine[@]}" run --detach --read-only --tmpfs /tmp --volume /var/cache/nablad \
            --volume /models --volume /training --cap-drop ALL --security-opt no-new-privileges "$image")
    }
    inside() { "${engine[@]}" exec --interactive "$container" "$@"; }
    alone() { "${engine[@]}" run --rm --interactive --network none --entrypoint "$1" "$image" "${@:2}"; }
    all_files() { "${engine[@]}" run --rm --network none --user 0 --entrypoint find "$image" / -xdev; }
    stop() {
        "${engine[@]}" stop -t 40 "$container" >/dev/null
        code=$("${engine[@]}" inspect --format '{{.State.ExitCode}}' "$container")
    }
    declared() { "${engine[@]}" image inspect --format "{{json .Config.$1}}" "$image"; }
    logs() { "${engine[@]}" logs "$container" 2>&1 | tail -n 40; }
    clean() { [ -z "${container:-}" ] || "${engine[@]}" rm --force --volumes "$container" >/dev/null; }
    ;;
buildah)
    export BUILDAH_ISOLATION=chroot NABLAD_PORT="${NABLAD_PORT:-8421}"
    container=$("${engine[@]}" from "$image")
    log=$(mktemp)
    inside() { "${engine[@]}" run --env NABLAD_PORT="$NABLAD_PORT" "$container" -- "$@"; }
    alone() { inside "$@"; }
    all_files() { "${engine[@]}" run --user 0 "$container" -- find / -xdev; }
    start() {
        # buildah runs no entrypoint, so say it; exec keeps the shell's process id.
        inside sh -c 'echo $$ >/tmp/nablad.pid; exec nablad serve' >"$log" 2>&1 &
        server=$!
    }
    stop() {
        inside sh -c 'kill -TERM "$(cat /tmp/nablad.pid)"'
        code=0
        wait "$server" || code=$?
    }
    declared() {
        "${engine[@]}" inspect --type image "$image" | inside python -c 'if True:
            import json, sys
            declared = json.load(sys.stdin)["Docker"]["config"].get(sys.argv[1])
            print(json.dumps(declared, separators=(",", ":")))' "$1"
    }
    logs() { tail -n 40 "$log"; }
    clean() {
        [ -z "${server:-}" ] || kill "$server" 2>/dev/null || true
        "${engine[@]}" rm "$container" >/dev/null
        rm -f "$log"
    }
    ;;
*)
    echo "ENGINE must be docker, podman or buildah, not ${engine[0]}" >&2
    exit 2
    ;;
esac
trap clean EXIT

check() { # check WHAT COMMAND...: runs it, reports, counts
    local said
    if said=$("${@:2}" 2>&1); then
        echo "ok    $1${said:+: ${said//$'\n'/; }}"
    else
        echo "FAIL  $1: $said"
        failures=$((failures + 1))
    fi
}
holds() { [[ "$1" == *"$2"* ]] || { echo "'$1' lacks '$2'"; return 1; }; }
not() { if "$@"; then return 1; fi; }
healthcheck() { "$1" python -IS /opt/nablad/healthcheck.py; }
ready() {
    local said
    for _ in $(seq 60); do
        if said=$(healthcheck inside 2>&1); then
            echo "$said"
            return
        fi
        sleep 1
    done
    echo "$said"
    return 1
}
nothing_else() {
    # Our own sources, tests and tools, and what building leaves behind. Other packages may bring what they like.
    local files
    files=$(all_files) && holds "$files" /opt/nablad/bin/nablad >/dev/null && not grep -E "$LEFTOVERS" <<<"$files"
}
writable() { alone find /opt/nablad -not -type l -writable -print -quit; }

echo "$image with ${engine[*]}"
check "its user is a number, not root" holds "$(declared User)" '"10001:10001"'
check "its entrypoint is in the exec form" holds "$(declared Entrypoint)" '["nablad","serve"]'
check "its port is declared" holds "$(declared ExposedPorts)" '"8421/tcp"'
check "it has a health check" holds "$(declared Healthcheck)" healthcheck.py
check "it holds no sources, tests, installers or caches" nothing_else
check "the server's user cannot change its code" holds "[$(writable)]" '[]'
check "nablad is installed" alone nablad --version
check "the health check fails without a server" not healthcheck alone
start
check "the health check passes with one" ready
check "the server is alive" inside python -IS /opt/nablad/healthcheck.py /health/live
check "commands run as the user, not as root" inside python -c 'import os; assert os.getuid() == 10001; print(os.getuid())'
check "a gradient is right" inside python - <exercise.py
check "models are kept in a repository" inside sh -c 'test -s /models/.lock && test "$NABLAD_REPOSITORY" = /models'
check "training can be saved" inside sh -c 'test "$NABLAD_CHECKPOINTS" = /training && test -e /training/.lock'
check "the cache can be written" inside sh -c 'touch /var/cache/nablad/written && rm /var/cache/nablad/written'
stop
check "SIGTERM ends it with exit code 0" holds "exit code $code." 'exit code 0.'
[ "$failures" -eq 0 ] || { echo "$failures checks failed; the server said:"; logs; exit 1; }
