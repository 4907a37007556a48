#!/bin/sh
# Builds the Dockerfile without a container engine and serves an object from what came out. As root, on Debian:
#   apt-get install buildah debootstrap curl util-linux
#   sh tests/image/build.sh [FOLDER]     FOLDER keeps the base of Debian between runs; default: a temporary one
# The base is Debian's own Python instead of python:slim. No namespaces but a mount namespace are used, no overlay file
# system, no cgroup: limits of CPU and memory and the seccomp profile are not tested.
set -eu
cd "$(dirname "$0")/../.."

SUITE=${SUITE:-bookworm}
PORT=${PORT:-18000}
scratch=$(mktemp -d)
cache=${1:-$scratch}
server=""
buildah() { timeout 600 buildah --storage-driver vfs --root "$scratch/storage" --runroot "$scratch/run" "$@"; }
leave() {
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
    buildah rm --all >/dev/null 2>&1 || true
    rm -rf "$scratch"
}
trap leave EXIT
trap 'exit 1' INT TERM
fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { echo "ok: $*"; }

base="$cache/base-$SUITE"
if [ ! -e "$base/.done" ]; then
    mkdir -p "$cache"
    timeout 900 debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$SUITE" "$base" \
        http://deb.debian.org/debian >"$scratch/debootstrap.log" || fail "debootstrap: $(tail -n 3 "$scratch/debootstrap.log")"
    touch "$base/.done"
fi
container=$(buildah from scratch)
buildah copy --quiet "$container" "$base" / >/dev/null
buildah commit --quiet "$container" localhost/base >/dev/null
ok "base made by debootstrap"

# The machine's certificates, for the case that its way to PyPI has an authority of its own.
certificates=/etc/ssl/certs/ca-certificates.crt
buildah bud --isolation chroot --pull-never --format docker --build-arg BASE_IMAGE=localhost/base \
    --volume "$certificates:$certificates:ro" --tag localhost/etl-server . >"$scratch/build.log" 2>&1 ||
    fail "build: $(tail -n 5 "$scratch/build.log")"
ok "image built"

container=$(buildah from --pull-never localhost/etl-server)
root=$(buildah mount "$container")
config() { buildah inspect --type image --format "$1" localhost/etl-server; }
user=$(config '{{.OCIv1.Config.User}}')
entry=$(config '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}{{range .OCIv1.Config.Cmd}}{{.}} {{end}}')
environment=$(config '{{range .OCIv1.Config.Env}}{{.}} {{end}}')
health=$(config '{{index .Docker.Config.Healthcheck.Test 3}}')
echo "user $user, command $entry"
for tool in gcc cc make curl; do
    [ -z "$(find "$root/usr/bin" "$root/opt/etl-server/bin" -name "$tool")" ] || fail "$tool is in the image"
done
ok "no build tools"

cp deploy/kubernetes/base/transform.py "$root/app/transform.py"
# shellcheck disable=SC2016,SC2086
unshare --mount sh -eu -c '
    root=$1 user=$2; shift 2
    mount --bind "$root" "$root"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -o remount,bind,ro "$root"
    ulimit -S -n 256
    exec chroot --userspec="$user" "$root" "$@"
' sh "$root" "$user" env -i $environment "ETL_HOST=127.0.0.1" "ETL_PORT=$PORT" $entry 2>"$scratch/server.log" &
server=$!

inside() { # shellcheck disable=SC2086
    chroot --userspec="$user" "$root" env -i $environment "ETL_PORT=$PORT" "$@"
}
tries=0
until inside python -c "$health" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || fail "the server ended: $(cat "$scratch/server.log")"
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || fail "not healthy: $(cat "$scratch/server.log")"
    sleep 0.5
done
ok "HEALTHCHECK passes once it serves"

[ "$(printf 'an object' | curl -sS --max-time 10 -T - "http://127.0.0.1:$PORT/bucket/object")" = 'AN OBJECT' ] ||
    fail "the object was not transformed"
! touch "/proc/$server/root/app/written" 2>/dev/null || fail "its root can be written to"
ok "an object was transformed, on a read-only root"

[ "$(awk '/^Uid:/ {print $2}' "/proc/$server/status")" = "${user%:*}" ] || fail "it does not run as $user"
ok "it runs as $user"
limits=$(awk '/^Max open files/ {print $4, $5}' "/proc/$server/limits")
[ "${limits% *}" = "${limits#* }" ] || fail "open files, soft and hard limit: $limits"
ok "open files: soft limit raised from 256 to the hard one, ${limits% *}"

kill -TERM "$server"
code=0
wait "$server" || code=$?
server=""
[ "$code" = 0 ] || fail "SIGTERM: exit code $code: $(cat "$scratch/server.log")"
ok "SIGTERM: exit code 0"
! inside python -c "$health" 2>/dev/null || fail "HEALTHCHECK passes with no server"
ok "HEALTHCHECK fails with no server"
