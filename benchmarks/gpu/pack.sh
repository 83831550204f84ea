#!/bin/bash
# Makes .gpu/ in the root of a checkout: the packages that a bare machine with a GPU lacks (Python 3.12, torch 2.11,
# transformers 5.17 are there), unpacked, and rows. To be run here, where ft is installed ([embedded,test]):
#   bash benchmarks/gpu/pack.sh      [SHARED=folder of dolly/ and mtnt/] [WHEELS=folder of wheels] [UNSLOTH=0: without]
# Then take .gpu/ there beside the checkout and run: bash benchmarks/gpu/check.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
shared=${SHARED:-../shared/data}
exclude=$(git rev-parse --git-path info/exclude); grep -qx '/.gpu/' "$exclude" 2>/dev/null || echo '/.gpu/' >> "$exclude"
rm -rf .gpu && mkdir -p .gpu/site .gpu/data
wheels=${WHEELS:-$(mktemp -d)}

main="trl==1.16.0 peft==0.21.2 datasets==4.8.5 bitsandbytes==0.50.2 dill==0.4.1 multiprocess==0.70.19 beartype==0.23.1
 liger-kernel==0.8.5 cut-cross-entropy==25.1.1"
more="unsloth==2026.10.9 unsloth_zoo==2026.10.9 trl==1.15.0 tyro==1.0.17 typeguard==4.6.1 docstring-parser==0.18.0
 structlog==26.1.0 nest-asyncio==1.6.0 json5==0.17.3 msgspec==0.22.0"
get() {
  local platforms=(); for n in 39 35 34 31 28 27 24 17; do platforms+=(--platform manylinux_2_${n}_x86_64); done
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$wheels" "$1" 2>&1 | grep -v WARNING || true
}
unpack() {  # requirement, folder
  local name=${1%%==*} version=${1##*==} file
  file=$(ls "$wheels" | grep -iE "^${name//[-_.]/[-_.]}-${version//./\\.}-.*\.whl$" | head -1 || true)
  if test -z "$file"; then get "$1"; file=$(ls "$wheels" | grep -iE "^${name//[-_.]/[-_.]}-${version//./\\.}-.*\.whl$" | head -1); fi
  unzip -q -o "$wheels/$file" -d "$2"
  printf '%-60s %8d bytes\n' "$file" "$(stat -c %s "$wheels/$file")"
}
for r in $main; do unpack "$r" .gpu/site; done
if test "${UNSLOTH:-1}" = 1; then for r in $more; do unpack "$r" .gpu/unsloth; done; fi

# only the library of CUDA 13.0 and the one for a CPU; nothing that no import needs
find .gpu -name 'libbitsandbytes_*.so' ! -name '*cuda130.so' ! -name '*cpu.so' -delete
rm -rf .gpu/unsloth/studio .gpu/unsloth/unsloth_cli .gpu/*/*.data .gpu/*/bin
find .gpu -type d \( -name tests -o -name __pycache__ -o -name examples \) -prune -exec rm -rf {} +
find .gpu -name RECORD -delete

# rows as ids of Gemma 3's tokenizer, in the layout of benchmarks/gpu.py, and a piece of Dolly for its recipe
SHARED=$shared HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python3 - <<'P'
import json, os
from pathlib import Path
from ft import data, models
from ft.text import prompts, tokens
from harness.prepare import read_dolly
shared, out = Path(os.environ["SHARED"]), Path(".gpu/data")
tokenizer = models.load_tokenizer("embedded")
translation = prompts.translation("French")
mtnt = shared / "mtnt/MTNT"
pairs = {
    "dolly": read_dolly(shared / "dolly")[:260],
    "mtnt": [translation.render(r) for r in data.mtnt("train", "en-fr", str(mtnt))][:260],
}
for name, given in pairs.items():
    found = tokens.encode(given, tokenizer, max_length=1024).examples[:200]
    (out / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in found))
    print(name, len(found), "rows,", sum(len(x["input_ids"]) for x in found), "tokens")
lines = (shared / "dolly/databricks-dolly-15k.jsonl").read_text().splitlines()
short = lambda r: not r["context"] and len(r["instruction"] + r["response"]) < 150  # small models read bytes
lines = [x for x in lines if short(json.loads(x))][:200]
(out / "dolly").mkdir()
(out / "dolly/databricks-dolly-15k.jsonl").write_text("\n".join(lines) + "\n")
P
du -sb .gpu .gpu/site .gpu/unsloth 2>/dev/null | awk '{printf "%6.1f MiB  %s\n", $1/2^20, $2}'
test "$(du -sb .gpu | cut -f1)" -lt $((60 * 2**20)) || { echo "over 60 MiB"; exit 1; }
