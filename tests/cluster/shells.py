"""Commands of a Slurm machine for one that has none, and where the commands of the tests are."""

import os
import shutil
import sys
from pathlib import Path

# Starts the command once for each task, as srun does on each node; ends with the worst status.
SRUN = r"""#!/bin/bash
ntasks=1
while [[ $1 != -- ]]; do
  case $1 in
    --ntasks=*) ntasks=${1#*=} ;;
    --job-name=*) name=${1#*=} ;;
  esac
  echo "$1" >> "$FAKE/options.$$"
  shift
done
shift
mv "$FAKE/options.$$" "$FAKE/$name.options"
pids=()
for ((task = 0; task < ntasks; task++)); do
  SLURM_PROCID=$task "$@" &
  pids+=($!)
done
trap 'kill -KILL "${pids[@]}"; exit 143' TERM
echo "${pids[*]}" > "$FAKE/$name.pids"
echo "$SLURM_JOB_ID.$$ $name" >> "$FAKE/steps"
worst=0
for pid in "${pids[@]}"; do
  wait "$pid"
  status=$?
  if ((status > worst)); then worst=$status; fi
done
exit "$worst"
"""
SQUEUE = r"""#!/bin/bash
echo "$SLURM_JOB_ID.batch batch"
cat "$FAKE/steps"
"""
SCANCEL = r"""#!/bin/bash
name=$(awk -v id="$2" '$1 == id {print $2}' "$FAKE/steps")
read -ra pids < "$FAKE/$name.pids"
kill -s "${1#--signal=}" "${pids[@]}"
"""
SCONTROL = r"""#!/bin/bash
if [[ $1 == requeue ]]; then
  echo "$2" >> "$FAKE/requeued"
else
  tr , '\n' <<< "$3"
fi
"""


def write_commands(folder: Path, **commands: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def found_command(name: str) -> str:
    """One that is installed beside this Python, or on the PATH."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert path is not None, f"{name} is missing: make install"
    return path
