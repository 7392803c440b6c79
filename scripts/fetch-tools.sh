#!/usr/bin/env bash
# Build the servers that the tests run against into a cache outside the repository, once.
#
#   scripts/fetch-tools.sh [minio] [toxiproxy]      (both without arguments)
#
# Go modules, each pinned by version and by the hash of its source: Go checks what a module needs
# against that module's go.sum. Prints the folder of the binaries.
set -euo pipefail

readonly CACHE="${FRUITS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fruits}/bin"

build() {
  local name="$1" package="$2" module="$3" version="$4" hash="$5"
  local binary="$CACHE/$name-$version" found scratch
  if [[ ! -x $binary ]]; then
    if ! command -v go >/dev/null; then
      echo "fetch-tools: $name $version is built with Go, which is not here: install Go 1.24 or later" >&2
      return 1
    fi
    found="$(go mod download -json "$module@$version" | sed -n 's/^\t"Sum": "\(.*\)",$/\1/p')"
    if [[ $found != "$hash" ]]; then
      echo "fetch-tools: $module@$version has the hash ${found:-of nothing}, not $hash: do not use it" >&2
      return 1
    fi
    echo "fetch-tools: building $name $version (minio takes ten minutes, once)" >&2
    scratch="$(mktemp -d "$CACHE/.building.XXXXXX")"
    GOBIN="$scratch" go install -ldflags "-s -w" "$package@$version"
    mv "$scratch"/* "$binary"  # one binary, whatever its package calls it
    rmdir "$scratch"
  fi
  ln -sf "$(basename "$binary")" "$CACHE/$name"
}

mkdir -p "$CACHE"
[[ $# -gt 0 ]] || set -- minio toxiproxy
for tool in "$@"; do
  case "$tool" in
    minio)  # the S3 server; AGPL: run by tests, never shipped
      build minio github.com/minio/minio github.com/minio/minio \
        v0.0.0-20260212201848-7aac2a2c5b7c h1:/qdoYujxF5MBLDMVLeiYJ/7fBa1HikX39Dvzb9Ji8pA=
      ;;
    toxiproxy)  # latency, resets and outages between a client and a server
      build toxiproxy github.com/Shopify/toxiproxy/v2/cmd/server github.com/Shopify/toxiproxy/v2 \
        v2.5.0 h1:i4LPT+qrSlKNtQf5QliVjdP08GyAH8+BUIc9gT0eahc=
      ;;
    *)
      echo "fetch-tools: $tool is not known: minio or toxiproxy" >&2
      exit 2
      ;;
  esac
done
echo "$CACHE"
