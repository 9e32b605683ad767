#!/bin/sh
# Installs the programs that the tests need: a browser, the proxies of the deployment tests,
# systemd-analyze for the service tests, PostgreSQL for the store tests.
# An installed Chromium or Chrome is used; otherwise Debian's packages are installed as root;
# otherwise Playwright downloads a browser. Without a browser the tests do not run; without another
# program its tests are skipped. Chromium's headless shell is preferred, as Playwright does: the same
# engine without windows, which takes half the time.
# Announces what it installs; with NO_INSTALL=1 it installs nothing.
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
find_proxy() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$1" >/dev/null 2>&1; }
find_analyze() { command -v systemd-analyze; } >/dev/null 2>&1
find_postgres() { command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1
purpose() {
    case $1 in
        chromium) echo "the browser for the page tests" ;;
        chromium-headless-shell) echo "the same browser without windows; halves the time of the tests" ;;
        nginx | caddy | haproxy | apache2-bin) echo "the proxy ${1%2-bin}, for the deployment tests" ;;
        systemd) echo "the program systemd-analyze, for the service tests; nothing is started" ;;
        postgresql) echo "the second database of the store tests" ;;
    esac
}
announce() {
    echo "make test is going to install Debian's packages, as root, with apt-get:"
    for name in "$@"; do
        echo "    $name: $(purpose "$name")"
    done
    case " $* " in *" postgresql "*)
        echo "/etc/postgresql-common/createcluster.conf is created if missing, so that no server is started." ;;
    esac
    echo "To install nothing: NO_INSTALL=1 make test. Tests whose program is missing are then skipped, but"
    echo "a browser is required. Installing ..."
}

missing=
find_browser 2>/dev/null || missing="chromium"
shell=
command -v chromium-headless-shell >/dev/null 2>&1 || shell="chromium-headless-shell"
proxies=
for name in nginx caddy haproxy; do
    find_proxy "$name" || proxies="$proxies $name"
done
find_proxy apache2 || proxies="$proxies apache2-bin" # the program without its service
find_postgres || missing="$missing postgresql"
analyze=
find_analyze || analyze="systemd"
if [ -z "${NO_INSTALL:-}" ] && [ -n "$missing$proxies$analyze$shell" ] && [ "$(id -u)" = 0 ] &&
    command -v apt-get >/dev/null 2>&1; then
    # shellcheck disable=SC2086 # a list of names
    announce $missing $proxies $analyze $shell
    # The tests start their own PostgreSQL; Debian's package would create and start another.
    find_postgres || [ -e /etc/postgresql-common/createcluster.conf ] || {
        mkdir -p /etc/postgresql-common
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    }
    # The proxies' packages must not start anything either: port 80 may be in use.
    policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] || {
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    }
    apt-get update -q >/dev/null 2>&1 || echo "apt-get update failed."
    # shellcheck disable=SC2086 # a list of names
    for packages in "$missing" $proxies "$analyze" "$shell"; do # one by one: a system may lack some
        # shellcheck disable=SC2086 # a list of names
        [ -z "$packages" ] || apt-get install -qy --no-install-recommends $packages >/dev/null 2>&1 ||
            echo "apt-get could not install:" $packages
    done
fi
find_browser 2>/dev/null && exit 0
if [ -z "${NO_INSTALL:-}" ]; then
    echo "Downloading a browser for the page tests into Playwright's folder (about 150 MB) ..."
    "$PYTHON" -m playwright install chromium >/dev/null 2>&1
    find_browser 2>/dev/null && exit 0
fi
echo "No browser for the tests was found, and none could be installed." >&2
echo "Install Chromium or Chrome (apt install chromium, brew install --cask chromium), try again." >&2
exit 1
