#!/usr/bin/env bash
# accelerate 1.15.0: `accelerate launch --cpu --num_processes 2` starts one process, without a word.
#
# One reads --num_processes as the number of processes, and on a machine with GPUs it is. With --cpu every launcher of
# several processes is passed over, and the script starts once. A test of distributed code on a laptop then passes
# without being distributed: no collective ran, and the global batch is half of the expected one. What starts two CPU
# processes is, of all options, --multi_gpu, with ACCELERATE_USE_CPU=true in the environment.
#
# Seen: "--cpu --num_processes 2: 1 process; with --multi_gpu and ACCELERATE_USE_CPU=true: 2 processes"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 accelerate==1.15.0 numpy
cat > "$folder/count.py" <<'PY'
from accelerate import Accelerator

print("processes:", Accelerator(cpu=True).num_processes)
PY
export HF_HOME="$folder/home"  # without a configuration of the user's
count() { "$folder/env/bin/accelerate" launch "$@" "$folder/count.py" 2>/dev/null | sed -n 's/processes: //p' | head -n 1; }
one=$(count --cpu --num_processes 2)
two=$(ACCELERATE_USE_CPU=true count --multi_gpu --num_processes 2)
echo "--cpu --num_processes 2: $one process; with --multi_gpu and ACCELERATE_USE_CPU=true: $two processes"
if [ "$one" != 1 ] || [ "$two" != 2 ]; then
  echo "this has changed: the first form started one process before, the second two" >&2
  exit 1
fi
