#!/bin/sh
# Installs what the demo and the tests need and the host lacks: PostgreSQL's server, nginx, curl, a C compiler. Says what
# it installs; does nothing when all is there. Debian and Ubuntu; elsewhere it names what is missing and fails.
set -eu

missing=""
need() { # PACKAGE, and what shows that it is there
    package=$1
    shift
    if ! "$@" >/dev/null 2>&1; then missing="$missing $package"; fi
}

has_postgres() { ls /usr/lib/postgresql/*/bin/initdb || test -x "$(pg_config --bindir)/initdb"; }
has_nginx() { test -x /usr/sbin/nginx; }

need postgresql has_postgres
need nginx-light has_nginx
need curl command -v curl
need gcc command -v cc
need util-linux command -v setpriv

if [ -z "$missing" ]; then exit 0; fi
if ! command -v apt-get >/dev/null; then
    echo "These are missing, and there is no apt-get here to install them:$missing" >&2
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
