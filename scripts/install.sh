#!/usr/bin/env bash
# Installs the project into a virtual environment: scripts/install.sh VENV [dev]
# On a bare Debian it first installs what is missing there; elsewhere it says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
kind=${2:-}
python=${PYTHON:-python3}

need() { # need COMMAND PACKAGE...: lets apt install the packages where the command fails
    local check=$1
    shift
    if bash -c "$check" >/dev/null 2>&1; then return; fi
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "installing $* with apt" >&2
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    else
        echo "please install $* (or run as root), then try again" >&2
        exit 1
    fi
}

need "$python -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))'" python3 python3-venv
if [ "$kind" = dev ]; then
    need "command -v chromium && command -v chromedriver" chromium chromium-driver
    need "command -v redis-server" redis-server
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@" 2> >(grep -v '^WARNING: Location' >&2); }
pip install --upgrade 'pip>=25.1' # the first with dependency groups
echo "installing nami-amp-pipeline into $venv" >&2
if [ "$kind" = dev ]; then
    pip install --editable . --group dev
else
    pip install --editable .
fi
