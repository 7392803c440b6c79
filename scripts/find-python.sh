#!/usr/bin/env bash
# Print the path of a Python 3.11 that can build a virtual environment.
# Looked at in this order: PATH, pyenv, uv, conda. Without one: one line on stderr, exit status 1.
set -euo pipefail

# One candidate per line; a tool that is absent adds none.
candidates() {
  printf '%s\n' python3.11 python3
  local root
  for root in "${PYENV_ROOT:-}" "${HOME:-}/.pyenv" "$(pyenv root)"; do
    printf '%s\n' "$root"/versions/3.11*/bin/python3.11
  done
  uv python find --system --no-project 3.11 || true
  # Set by `conda init`, which makes conda itself a shell function that scripts do not see.
  root="$("${CONDA_EXE:-conda}" info --base)" || return 0
  printf '%s\n' "$root"/bin/python3.11 "$root"/envs/*/bin/python3.11
}

# A name proves nothing: pyenv leaves shims without a version behind them, and Debian ships Python
# without ensurepip. The answer is the interpreter behind a shim or a virtual environment (perhaps
# the very .venv that is about to be removed). -I: no PYTHONPATH of another Python.
interpreter() {
  "$1" -I -c '
import ensurepip, os, sys, venv
path = os.path.join(sys.base_prefix, "bin", "python3.11")
if sys.version_info[:2] != (3, 11) or not os.access(path, os.X_OK):
    sys.exit(1)
print(path)
' </dev/null 2>/dev/null
}

while IFS= read -r candidate; do
  if python="$(interpreter "$candidate")"; then
    printf '%s\n' "$python"
    exit 0
  fi
done < <(candidates 2>/dev/null)

printf '%s\n' "No Python 3.11 with venv and ensurepip was found: install one with \
'sudo apt install python3.11 python3.11-venv', 'pyenv install 3.11', 'uv python install 3.11' \
or 'conda create -n python311 python=3.11'." >&2
exit 1
