#!/usr/bin/env bash
#SBATCH --job-name=alignment
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.out
# A script of this repository on several nodes under Slurm: torchrun on each of them, all processes as one training.
#
#   sbatch --nodes 4 scripts/slurm_train.sh train.py --objective sft --model_name_or_path meta-llama/Llama-2-70b-hf \
#     --data_path almost_train.json --output_dir outputs/sft-70b --bf16 --gradient_checkpointing --fsdp full_shard \
#     --save_strategy steps --resume_from_checkpoint True
#
# Hardware   as the lines above ask for: 2 nodes of 8 GPUs; what is given to sbatch wins over them
# Time       the script's own
# Expected   what torchrun on one node gives. On GPUs and over a network not run here
#
# Send it from the repository's root, which all nodes see, as they see --output_dir. torchrun starts a process on each
# GPU, or NPROC of them. A job that was stopped or taken away goes on where its last whole checkpoint is, on as many
# nodes as it gets: a step keeps its rows.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this is for sbatch}"

: "${1:?usage: sbatch [flags of sbatch] scripts/slurm_train.sh SCRIPT [flags of the script]}"
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # head would end scontrol by a signal
PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # two jobs may share a node

srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc_per_node "${NPROC:-gpu}" \
  --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$MASTER:$PORT" "$@"
