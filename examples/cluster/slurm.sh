#!/usr/bin/env bash
# One run on the nodes of a Slurm job. It goes on by itself when its time was up, it was preempted, or a process died.
#
#   sbatch --nodes 2 --gpus-per-node 4 --time 04:00:00 examples/cluster/slurm.sh RECIPE key=value ... --out DIR
#
# DIR lies where all nodes see it, and is always named: the requeued job finds its run there. The time that is left for
# saving when the signal comes has to hold `log_every` steps.
#SBATCH --job-name=dotkd
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -eu

main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
stopping=

# Signals reach the steps by scancel: srun would kill them at SIGTERM instead of passing it on.
stop() {
    stopping=yes
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop USR1 TERM

# torchrun starts the processes of a node, one to a GPU.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$main:$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id "$SLURM_JOB_ID" \
    -m dotkd train "$@" &
step=$!

# A signal ends `wait` before the step has ended.
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done

if [ -n "$stopping" ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 75
fi
exit "$code"
