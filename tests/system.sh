#!/bin/sh
# What the tests need of the system: a browser, nginx for the test of the deployment, PostgreSQL for
# the store's.
# An installed Chromium or Chrome will do; else Debian's packages where we may install them; else
# Playwright's own download. Without a browser the tests do not run; without nginx or PostgreSQL
# their tests say so. Where there is one, Chromium's headless shell is preferred, as Playwright does
# itself: the same engine without the browser's windows, which takes half the time.
set -u
find_browser() {
    for name in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable chrome; do
        command -v "$name" >/dev/null 2>&1 && return 0
    done
    [ -x "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" ] && return 0
    "$PYTHON" - <<'PY'
import os, sys
from playwright.sync_api import sync_playwright
with sync_playwright() as p:
    sys.exit(not os.path.exists(p.chromium.executable_path))
PY
}
find_nginx() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v nginx >/dev/null 2>&1; }
find_postgres() { command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1

missing=
find_browser 2>/dev/null || missing="chromium"
shell=
command -v chromium-headless-shell >/dev/null 2>&1 || shell="chromium-headless-shell"
find_nginx || missing="$missing nginx"
find_postgres || missing="$missing postgresql"
if [ -n "$missing$shell" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Debian's packages for the tests: $missing $shell"
    # The tests start a PostgreSQL of their own; Debian's package would make and start another.
    find_postgres || [ -e /etc/postgresql-common/createcluster.conf ] || {
        mkdir -p /etc/postgresql-common
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    }
    apt-get update -q >/dev/null 2>&1
    for packages in "$missing" "$shell"; do # not every system has the second
        # shellcheck disable=SC2086 # a list of names
        [ -z "$packages" ] || apt-get install -qy --no-install-recommends $packages >/dev/null 2>&1
    done
fi
find_browser 2>/dev/null && exit 0
echo "Downloading a browser for the tests..."
"$PYTHON" -m playwright install chromium >/dev/null 2>&1
find_browser 2>/dev/null && exit 0
echo "No browser for the tests could be found or installed." >&2
echo "Install Chromium or Chrome (apt install chromium, brew install --cask chromium), try again." >&2
exit 1
