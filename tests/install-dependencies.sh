#!/bin/sh
# Installs what the demo and the tests need and the host lacks. Says what it installs and what for; does nothing when all
# is there. Debian and Ubuntu; elsewhere it names what is missing and fails.
#
# pm2 is no package of the distribution: npm puts it into the target directory, unless there is one on the path.
set -eu

# The version of pm2 that is installed here; another one on the path will do, too.
pm2_version=7.0.4

missing=""
need() { # PACKAGE, what it is for, and what shows that it is there
    package=$1 purpose=$2
    shift 2
    if "$@" >/dev/null 2>&1; then return; fi
    missing="$missing $package"
    echo "Missing: $package ($purpose)" >&2
}

has_postgres() { ls /usr/lib/postgresql/*/bin/initdb || test -x "$(pg_config --bindir)/initdb"; }
# Programs of administrators are often not on the path of others.
has() { command -v "$1" || test -x "/usr/sbin/$1" || test -x "/sbin/$1"; }
# busybox of containers and of the systemd container must not need libraries.
has_static_busybox() { command -v busybox && ! ldd "$(command -v busybox)"; }
has_compose() { command -v docker-compose || docker compose version; }

need postgresql "the database that is rolled back" has_postgres
need nginx-light "the proxy that is rolled back" has nginx
need curl "asks what is served, independently of the programs under test" has curl
need gcc "links the programs" has cc
need util-linux "setpriv: servers end with the tests, and do not run as root" has setpriv
need docker.io "the engine of the container scenarios" has dockerd
need iptables "the engine's networks" has iptables
need docker-compose "the Compose scenarios" has_compose
need binutils "strip: small images" has strip
need git "releases from git" has git
if ! has node >/dev/null || ! has npm >/dev/null; then
    need nodejs "the application that pm2 runs" has node
    need npm "npm ci, and pm2" has npm
fi
need prometheus "promtool: the alert rules are tested" has promtool
need redis-server "the cache beside the application" has redis-server
need debootstrap "a host with systemd, as a container" has debootstrap
need busybox-static "small images" has_static_busybox
need faketime "wall clocks that are moved" has faketime
need iproute2 "networks of their own, to be cut" has ip
need pgbouncer "a pooler in front of the store" has pgbouncer
need tmux "a terminal for the live tree" has tmux
need zip "archives of releases" has zip
need unzip "archives of releases" has unzip
need zstd "archives of releases" has zstd

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "There is no apt-get here to install them: install$missing" >&2
        exit 1
    fi
    echo "Installing:$missing" >&2
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "Neither root nor sudo. Run as root: apt-get install$missing" >&2
            exit 1
        fi
        as_root=sudo
    fi
    export DEBIAN_FRONTEND=noninteractive
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of names
    $as_root apt-get install -y --no-install-recommends $missing >&2
fi

here=$(cd "$(dirname "$0")/.." && pwd)
pm2=${CARGO_TARGET_DIR:-$here/target}/pm2
if ! command -v pm2 >/dev/null && ! test -x "$pm2/node_modules/.bin/pm2"; then
    echo "Missing: pm2 (the process manager of the git scenarios). Installing $pm2_version into $pm2" >&2
    mkdir -p "$pm2"
    npm install --prefix "$pm2" --no-audit --no-fund --loglevel=error "pm2@$pm2_version" >&2
fi
