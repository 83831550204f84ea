#!/bin/bash
# The check on a machine with a GPU, in the root of a checkout after pack.sh: bash benchmarks/gpu/check.sh
# PARTS="…" chooses parts, BUDGET=seconds in all (380). Results: $OUT/result.txt as they come; $OUT/log.txt the rest.
cd "$(dirname "$0")/../.." || exit 1
root=$PWD OUT=${OUT:-/tmp/gpu-out} BUDGET=${BUDGET:-380}; mkdir -p "$OUT"; export OUT
export PYTHONPATH=$root/.gpu/site:$root${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export FT_CACHE=/tmp/ft-cache HF_DATASETS_CACHE=/tmp/hf-datasets TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TRITON_CACHE_DIR=/tmp/triton
export TQDM_DISABLE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
if test -z "$WORK"; then  # models of random weights: in memory where there is room for 7B's 17 GB
  free=$(df -k --output=avail /dev/shm 2>/dev/null | tail -1); WORK=/tmp/ft-check
  if test "${free:-0}" -gt $((30 * 1024 * 1024)); then WORK=/dev/shm/ft-check; fi
fi
export WORK; mkdir -p "$WORK"; begin=$SECONDS
{ date; nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm --format=csv,noheader; free -g | sed -n 2p; } >> "$OUT/result.txt" 2>&1
if test -d .gpu; then  # once for all processes
  timeout 25 python3 -m compileall -q -j 16 .gpu/site/{bitsandbytes,peft,trl,datasets,dill,multiprocess,accelerate} ft benchmarks > /dev/null 2>&1
  python3 -m compileall -q -j 8 .gpu > /dev/null 2>&1 &
fi
echo "compiled after $((SECONDS - begin)) s" >> "$OUT/result.txt"

check() {  # parts, in as few processes as there are faults: importing everything takes 17 s
  rm -f "$WORK/begun"
  for try in 1 2 3 4; do
    local names="" left=$((BUDGET - (SECONDS - begin)))
    for name in "$@"; do grep -qx "$name" "$WORK/begun" 2>/dev/null || names="$names $name"; done
    if test -z "$names" || test $left -lt 15; then return; fi
    echo "## after $((SECONDS - begin)) s:$names" | tee -a "$OUT/result.txt" "$OUT/log.txt"
    timeout -k 3 $((left + 3)) env LIMIT=$((left - 2)) python3 benchmarks/gpu/check.py $names 2>> "$OUT/log.txt" | sed -u 's/^\(.\{700\}\).*/\1/' | tee -a "$OUT/result.txt"
    local rc=${PIPESTATUS[0]}; if test "$rc" = 0; then return; fi
    echo "## ended with status $rc" | tee -a "$OUT/result.txt"; tail -n 6 "$OUT/log.txt" | cut -c1-300 | tee -a "$OUT/result.txt"
  done
}
# most valuable first; "steps" makes the model, and what follows finds it
check ${PARTS:-steps step attention kernels parity decode recipe}
if test -n "$MEM7B"; then export SHAPE=gemma-7b FULL=1x1024 PEERS=ft-checkpointing; check steps; fi  # with recomputed layers
echo "## $((SECONDS - begin)) s in all" | tee -a "$OUT/result.txt"
test -n "$KEEP" || rm -rf "$WORK"
