#!/usr/bin/env bash
# Pre-train on all GPUs of one machine: examples/launch/single_node.sh PICTURES RUN [any flag of remask pretrain]
# A process that dies is replaced twice; the run then goes on from its last checkpoint.
set -euo pipefail

data=$1 out=$2
shift 2
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

torchrun --standalone --nproc-per-node "$gpus" --max-restarts 2 -m \
  remask pretrain --recipe "${RECIPE:-mae-dmjd-vit-b}" --data "$data" --out "$out" "$@"
