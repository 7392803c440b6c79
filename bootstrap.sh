#!/usr/bin/env bash
# Make a node of an EMR cluster ready for this project. EMR runs it on each node, as hadoop, before
# it installs Spark; a node where it fails is not used.
#
#   bootstrap.sh --stage s3://bucket/prefix [--region eu-west-1]
#
# What `fruits emr create` or `stage` has staged becomes a separate Python environment,
# /opt/fruits/venv: the system's Python belongs to dnf and the aws command, and EMR writes into it
# too. Wheels come from the stage's wheelhouse, or from the package index if that has none. Run
# again, it changes nothing until the lock or the project's wheel has changed.
set -euo pipefail
umask 022  # YARN's containers run as other users, and have to read all of it

readonly ROOT=/opt/fruits VENV=/opt/fruits/venv PYTHON=/usr/bin/python3.11
readonly WORK=$ROOT/work  # downloads, on the same disk as the environment: checked once
readonly NEEDED_MB=1000  # 760 at most were seen in use, 620 of them stay
STAGE="" REGION=""

# The last line says what failed, in the words of the command that did, and the way out.
doing="" remedy="" reason=""
step() { doing="$1" remedy="$2" reason=""; }
fail() { reason="$1"; exit 1; }
finish() {
  local status=$?
  [[ ! -d $WORK ]] || rm -rf "$WORK" || status=1
  if ((status)); then
    echo "bootstrap: FAILED: $doing${reason:+ ($reason)}: $remedy" >&2
  else
    echo "bootstrap: ready in $SECONDS s"
  fi
  exit "$status"
}
trap finish EXIT
trap 'fail "stopped by a signal"' INT TERM

# attempt TIMES SECONDS COMMAND...: a try is ended after SECONDS; before the next it waits, longer
# each time.
attempt() {
  local times="$1" seconds="$2" try status
  shift 2
  for ((try = 1; try <= times; try++)); do
    ((try == 1)) || sleep $((2 ** try))
    status=0
    timeout "$seconds" "$@" 2>"$WORK/errors" || status=$?
    cat "$WORK/errors" >&2
    ((status)) || return 0
  done
  ((status != 124)) || fail "no answer within $seconds s"
  # pip's last error with the line after it, which names the package; else the last line.
  fail "$(awk 'NF {last = $0} sub(/^ERROR: /, "") {at = NR; error = $0}
    at && NR == at + 1 {error = error $0}
    END {print at ? error : last}' "$WORK/errors" | tr -s ' ')"
}

# copy WHAT FROM TO [OPTION...]: WHAT is cp or sync.
copy() { attempt 3 600 aws s3 "$1" "$2" "$3" --only-show-errors "${@:4}"; }

step "arguments" "write bootstrap.sh --stage s3://bucket/prefix [--region eu-west-1]"
while (($#)); do
  case "$1 ${2-}" in
    "--stage s3://"?*) STAGE="${2%/}" ;;
    "--region "?*) REGION="$2" ;;
    *) fail "$1 ${2-}" ;;
  esac
  shift 2
done
[[ $STAGE ]] || fail "--stage is missing"

step "making $ROOT" "run it as a user who may sudo, such as hadoop"
sudo install -d -m 755 -o "$(id -un)" "$ROOT" "$ROOT/bin"
rm -rf "$WORK"  # of a run that was interrupted
step "looking at the disk of $ROOT" "give the nodes a larger root volume, --ebs-gb"
free_mb=$(($(df --output=avail -k "$ROOT" | tail -n 1) / 1024))
((free_mb >= NEEDED_MB)) || fail "$free_mb MB are free, $NEEDED_MB are needed"
mkdir "$WORK"
export TMPDIR=$WORK

# EMR tells its nodes no region. Without one, boto3 asks us-east-1, which hangs in a private subnet.
if [[ ! $REGION ]]; then
  step "asking the instance for its region" "give it: bootstrap.sh --region eu-west-1"
  imds=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest
  ask() { attempt 3 10 curl -sSf -o "$WORK/answer" "$@"; }
  ask -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$imds/api/token"
  ask -H "X-aws-ec2-metadata-token: $(<"$WORK/answer")" "$imds/meta-data/placement/region"
  REGION="$(<"$WORK/answer")"
fi
export AWS_REGION="$REGION" AWS_DEFAULT_REGION="$REGION"

step "reading $STAGE/" "fill it with \`fruits emr stage\`, and let the node's role read it"
attempt 3 60 aws s3 ls "$STAGE/" >"$WORK/listing"
step "taking fruits_lib from $STAGE/" "fill it again with \`fruits emr stage\`"
mapfile -t wheels < <(awk '$4 ~ /^fruits_lib-.*\.whl$/ {print $4}' "$WORK/listing")
((${#wheels[@]} == 1)) || fail "${#wheels[@]} wheels of fruits_lib, not one: ${wheels[*]-}"
wheel="${wheels[0]}"
copy cp "$STAGE/requirements-node.lock" "$WORK/"
copy cp "$STAGE/$wheel" "$WORK/"
copy cp "$STAGE/$wheel.sha256" "$WORK/"
# Against a damaged copy; who may write to the stage may write the hash too.
(cd "$WORK" && sha256sum --check --strict --quiet "$wheel.sha256") ||
  fail "$wheel has another sha256"

stamp="$(cat "$WORK/requirements-node.lock" "$WORK/$wheel" | sha256sum)"
up_to_date() { [[ -f $VENV/.stamp && "$(<"$VENV/.stamp")" == "$stamp" ]]; }
if ! up_to_date; then
  step "python3.11" "take a release of EMR with it (7.x), or see the output of dnf above"
  [[ -x $PYTHON ]] || attempt 3 300 sudo dnf install -y python3.11
  rm -rf "$VENV"  # half made, or of another lock
  attempt 1 120 "$PYTHON" -m venv "$VENV"

  pip=("$VENV/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check)
  locked=(--require-hashes --only-binary :all: --requirement "$WORK/requirements-node.lock")
  from="$STAGE/wheelhouse/$(uname -m)/"
  step "reading $from" "check that the node's role may read it"
  mkdir "$WORK/wheels"
  copy cp "$from" "$WORK/wheels" --recursive --exclude "*" --include "*.whl"
  source="$from" tries=1 options=(--no-index --find-links "$WORK/wheels")
  compgen -G "$WORK/wheels/*.whl" >/dev/null || source="the package index" tries=3 options=()
  echo "bootstrap: wheels come from $source"
  step "installing from $source" "fill $from again with \`fruits emr stage\`"
  attempt "$tries" 600 "${pip[@]}" "${locked[@]}" "${options[@]}"
  # Before the project's wheel, which also asks for what nodes do not install: Spark, TensorFlow.
  attempt 1 60 "$VENV/bin/python" -I -m pip check
  step "installing $wheel" "stage it again with \`fruits emr stage\`"
  attempt 1 120 "${pip[@]}" --no-deps --no-index "$WORK/$wheel"
fi

step "reading $STAGE/backbones/" "check that the node's role may read it"
copy sync "$STAGE/backbones/" "$VENV/share/fruits/backbones/" \
  --delete --exclude "*" --include "*.tflite" --include "*.tflite.sha256"
step "checking backbones" "fill $STAGE/backbones/ again with \`fruits emr stage\`"
for digest in "$VENV"/share/fruits/backbones/*.sha256; do  # stays beside: `fruits` looks again
  [[ ! -e $digest ]] || (cd "${digest%/*}" && sha256sum --check --strict --quiet "$digest") ||
    fail "${digest##*/} is of another file"
done

# EMR's own Spark, which comes after this: found when the command is run.
cat >"$ROOT/bin/fruits" <<'LAUNCHER'
#!/usr/bin/env bash
# Written by bootstrap.sh: `fruits` with EMR's Spark.
set -euo pipefail
shopt -s nullglob
export SPARK_HOME=/usr/lib/spark HADOOP_CONF_DIR=/etc/hadoop/conf
export AWS_REGION=@REGION@ AWS_DEFAULT_REGION=@REGION@
py4j=("$SPARK_HOME"/python/lib/py4j-*-src.zip)
export PYTHONPATH="$SPARK_HOME/python:${py4j[0]:?is missing: the cluster has no Spark application}"
export PYSPARK_PYTHON=/opt/fruits/venv/bin/python PYSPARK_DRIVER_PYTHON=/opt/fruits/venv/bin/python
exec /opt/fruits/venv/bin/fruits "$@"
LAUNCHER
sed -i "s/@REGION@/$REGION/g" "$ROOT/bin/fruits"
chmod 755 "$ROOT/bin/fruits"

step "self-test" \
  "stage a sound backbone (--weights); if a package is at fault, report it with the output above"
cat >"$WORK/self_test.py" <<'SELF_TEST'
import io
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from fruits_lib.udf import decode_image, open_backbone  # all that executors import
from PIL import Image

photograph = io.BytesIO()
Image.linear_gradient("L").save(photograph, "JPEG")
backbones = sorted(Path(sys.prefix, "share/fruits/backbones").glob("*.tflite"))
for path in backbones:
    content = path.read_bytes()
    try:
        size = int(Interpreter(model_content=content).get_input_details()[0]["shape"][1])
        features = open_backbone(content)(decode_image(photograph.getvalue(), size))
    except Exception as error:
        sys.exit(f"{path.name}: {error}")
    if not np.isfinite(features).all():
        sys.exit(f"{path.name} gives features that are not finite")
    print(f"bootstrap: {path.name} gives {features.size} features")
if not backbones:
    print("bootstrap: no backbone is staged: weights= of a run has to name a .tflite file")
SELF_TEST
attempt 1 120 "$VENV/bin/python" -I "$WORK/self_test.py"
up_to_date || echo "$stamp" >"$VENV/.stamp"  # last: without it the next run starts afresh
