#!/usr/bin/env bash
# Process 1 of a node: a fresh root that forgets what is written to it, and an S3 server on its own
# loopback. Run by node.py in namespaces of its own: when it ends, all that runs in them ends, and
# the mounts are gone.
#
#   node.sh ROOT FOLDER STAGE SPARK COMMAND...
#
# FOLDER is an empty one to mount on, SPARK the folder that holds the packages pyspark and py4j,
# COMMAND starts the server.
set -euo pipefail
root="$1" folder="$2" stage="$3" spark="$4"
shift 4

mount -t tmpfs -o size=4g tmpfs "$folder"
mkdir "$folder"/{upper,work,root}
mount -t overlay overlay \
  -o "lowerdir=$root,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount --rbind /dev dev
mkdir mnt/stage mnt/pyspark
mount --bind -o ro "$stage" mnt/stage
mount --bind -o ro "$spark/pyspark" mnt/pyspark
ip link set lo up

echo up
"$@" >"$folder/server.log" 2>&1  # no exec: process 1 has to bury orphans, and bash does
