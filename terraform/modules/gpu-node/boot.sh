# What a node does on its first boot, after the lines that arm its dead-man and say what it is: fetch the agent's archive,
# check it, become it. The same text on every node. Whatever goes wrong powers the machine off: it cost money for nothing.
set -u
umask 077
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}" HOME="${HOME:-/root}"

off() {
  trap - EXIT
  echo "mlinfra-prefect: $1: powering off" >&2
  shutdown -P now || poweroff
  exit 1
}
trap 'off "boot.sh ended before the agent took over"' EXIT

# The agent needs Python 3.11; an image may have several, and a name may lead nowhere.
python=
for name in python3.14 python3.13 python3.12 python3.11 python3; do
  found=$(command -v "$name") || continue
  if "$found" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$found
    break
  fi
done
[ -n "$python" ] || off "this image has no Python 3.11 or later"

root=${MLINFRA_NODE_ROOT:-/var/lib/mlinfra-prefect}
archive=$root/agent.pyz
mkdir -p "$root" && chmod 700 "$root" || off "$root cannot be made"

told() {
  "$python" -I -S -c 'import base64, json, sys; print(json.loads(base64.b64decode(sys.argv[1]))[sys.argv[2]])' \
    "$MLINFRA_BOOT" "$1"
}
url=$(told agent_url) && sha256=$(told agent_sha256) || off "what this node was told at boot cannot be read"

fetch() {
  if command -v curl >/dev/null; then
    # The address is a secret for as long as it holds, so it is not an argument that every process could read.
    printf 'url = "%s"\n' "$url" | curl -fsS --connect-timeout 5 --max-time 60 -o "$archive.part" -K -
  else
    printf '%s' "$url" | "$python" -I -S -c '
import sys, urllib.request
with urllib.request.urlopen(sys.stdin.read(), timeout=60) as answer, open(sys.argv[1], "wb") as file:
    file.write(answer.read())' "$archive.part"
  fi
}
right() {
  "$python" -I -S -c '
import hashlib, sys
sys.exit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2])' "$archive.part" "$sha256"
}

# A machine may be up before its network is.
for pause in 1 1 2 3 5 10 15 20 30 30 -; do
  if fetch; then
    right && break
    echo "mlinfra-prefect: the agent's archive is not what its sha256 says" >&2
  fi
  [ "$pause" != - ] || off "the agent's archive could not be fetched"
  sleep "$pause"
done
mv "$archive.part" "$archive" || off "$root cannot be written"
exec "$python" -I -S "$archive" courier "$MLINFRA_BOOT"
