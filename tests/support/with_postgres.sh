#!/bin/sh
# with_postgres.sh COMMAND...: run it with TEST_DATABASE_URL set to a PostgreSQL of its own, which is
# made in a temporary folder, listens on a socket there, and is gone afterwards. Where there is no
# PostgreSQL the command runs without, unless NEED_POSTGRES is set.
set -u
[ -n "${TEST_DATABASE_URL:-}" ] && exec "$@"

bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$bin" ] || bin=$(dirname "$(command -v pg_ctl 2>/dev/null || echo .)")
run() { "$@"; }
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
    id postgres >/dev/null 2>&1 && user=postgres || user=nobody
    run() { (cd / && setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "$@"); }
fi
if [ ! -x "$bin/initdb" ]; then
    echo "No PostgreSQL was found: the store's tests on it are skipped." >&2
    [ -n "${NEED_POSTGRES:-}" ] && exit 1
    exec "$@"
fi

folder=$(mktemp -d /tmp/halt-postgres.XXXXXX)
[ "$(id -u)" = 0 ] && chown "$user" "$folder"
chmod 755 "$folder"
stop() {
    run "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM
# Nothing of it is to outlive the tests, so it need not wait for the disk.
if ! run "$bin/initdb" -D "$folder/data" -U halt -A trust -E UTF8 --locale=C -N >"$folder/log" 2>&1 ||
    ! run "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/data/log" \
        -o "-c listen_addresses= -k $folder -F -c max_connections=200" start >>"$folder/log" 2>&1
then
    cat "$folder/log" >&2
    echo "PostgreSQL could not be started." >&2
    exit 1
fi
TEST_DATABASE_URL="postgresql://halt@/postgres?host=$folder" "$@"
