#!/usr/bin/env bash
# Process 1 of a machine: a root that forgets what is written to it. Run by machine.py in namespaces
# of its own: when it ends, all that runs in them ends, and the mounts are gone.
#
#   machine.sh ROOT FOLDER [SOURCE:TARGET...] -- COMMAND...
#
# FOLDER is an empty one to mount on. Each SOURCE, a file or folder of the host, is seen read-only at
# TARGET. COMMAND is the server that the machine is there for.
set -euo pipefail
root="$1" folder="$2"
shift 2

mount -t tmpfs -o size=8g tmpfs "$folder"
mkdir "$folder"/{upper,work,root}
mount -t overlay overlay \
  -o "lowerdir=$root,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount --rbind /dev dev
while [[ $1 != -- ]]; do
  source="${1%%:*}" target=".${1#*:}"
  if [[ -d $source ]]; then mkdir -p "$target"; else install -D /dev/null "$target"; fi
  mount --bind -o ro "$source" "$target"
  shift
done
ip link set lo up

echo up
"${@:2}" >"$folder/server.log" 2>&1  # no exec: process 1 has to bury orphans, and bash does
