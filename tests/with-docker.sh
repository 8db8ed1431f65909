#!/bin/sh
# Runs a command with a Docker engine that answers: the one that is there (DOCKER_HOST, or /var/run/docker.sock), or one
# of our own at /var/run/docker.sock, which ends with the command. Ours keeps its images in target/docker, so that a second
# run is quick.
#
#   tests/with-docker.sh cargo nextest run -p fleet-tests
#
# Ours needs root. Without it the command runs all the same, and tests that want an engine say that there is none.
set -eu

# There may be two clients on the path. The distribution's fits the distribution's engine.
docker=docker
if [ -x /usr/bin/docker ]; then docker=/usr/bin/docker; fi

answers() { timeout 10 "$docker" version >/dev/null 2>&1; }

if answers; then exec "$@"; fi
if [ "$(id -u)" != 0 ]; then
    echo "No Docker engine answers, and only root can start one." >&2
    exec "$@"
fi
if ! command -v dockerd >/dev/null; then
    echo "No Docker engine answers, and there is no dockerd here: tests/install-dependencies.sh installs it." >&2
    exec "$@"
fi

here=$(cd "$(dirname "$0")/.." && pwd)
data=${CARGO_TARGET_DIR:-$here/target}/docker
mkdir -p "$data"
# One engine per directory of images: whoever comes second waits.
exec 9>"$data/lock"
flock 9

run=$(mktemp -d "${TMPDIR:-/tmp}/rollback-docker-XXXXXX")
# Where everybody looks for one, agents under test included: nobody answers there.
unset DOCKER_HOST
dockerd --data-root "$data/data" --exec-root "$run/exec" --pidfile "$run/pid" \
    --host unix:///var/run/docker.sock >"$data/dockerd.log" 2>&1 9>&- &
dockerd=$!
command=""
# dockerd ends its containers and its containerd when it is asked to; the directory can go only then.
end() {
    trap '' TERM INT HUP
    [ -z "$command" ] || kill "$command" 2>/dev/null || :
    kill "$dockerd" 2>/dev/null || :
    wait "$dockerd" 2>/dev/null || :
    umount "$run/exec/netns/default" 2>/dev/null || :
    rm -rf "$run"
}
trap end EXIT
trap 'exit 143' TERM INT HUP

tries=0
until answers; do
    tries=$((tries + 1))
    if [ $tries -gt 60 ] || ! kill -0 "$dockerd" 2>/dev/null; then
        echo "dockerd does not answer; $data/dockerd.log ends so:" >&2
        tail -n 20 "$data/dockerd.log" >&2
        exit 1
    fi
    sleep 0.5
done
# In the background, so that a signal is heard while it runs.
"$@" 9>&- &
command=$!
status=0
wait "$command" || status=$?
command=""
exit $status
