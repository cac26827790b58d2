if [ -n "$env_file" ]; then
    set -a
    # shellcheck source=/dev/null
    . "$env_file"
    set +a
fi
if [ -n "$venv" ]; then
    export PATH="$venv/bin:$PATH"
fi
command -v gwp > /dev/null || { echo "gwp is not on the PATH of $(hostname); set slurm.venv" >&2; exit 2; }

# Where Ray's head is: the first node, which this script runs on. Its own name may stand for
# loopback there, which the other nodes cannot ask.
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
address="$(getent ahostsv4 "$first" | awk '!/^127\./ {print $1; exit}')"
address="${address:-$(hostname -I | awk '{print $1}')}"

# Whoever knows the token of this allocation may use its Ray.
if [ "$token_auth" = 1 ]; then
    RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
fi
# Nodes of a large allocation come up one after the other.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-600}"
export RAY_USAGE_STATS_ENABLED=0
# Nodes are ended when the head is gone already, and there is nobody to say farewell to.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
driver="$scratch/driver"

# Slurm's notice, before the time is over or the nodes are taken away: the driver takes a
# checkpoint and ends. Only the driver is told; Ray is needed until then.
noticed=0
trap 'noticed=1' USR1

# shellcheck disable=SC2016  # for the shell on the head
train='echo $$ > "$0"; export RAY_ADDRESS="$1"; shift; exec gwp train "$@"'
ray=(ray symmetric-run --address "$address:$port" --min-nodes "$((nodes + data_nodes))")
work=(-- bash -c "$train" "$driver" "$address:$port" "$stage")
# A step is not told how many CPUs its job has, and would be bound to one.
all=(--ntasks-per-node=1 --wait=60 --kill-on-bad-exit=1)
tasks=("${all[@]}" --ntasks="$nodes" --cpus-per-task="$cpus" "${ray[@]}" "${ray_options[@]}" "${work[@]}")
if [ "$data_nodes" -gt 0 ]; then
    decoding=("${all[@]}" --ntasks="$data_nodes" --cpus-per-task="$data_cpus")
    tasks=(
        --het-group=0 "${tasks[@]}"
        : --het-group=1 "${decoding[@]}" "${ray[@]}" "${data_options[@]}" "${work[@]}"
    )
fi
srun "${tasks[@]}" &
step=$!
# A notice interrupts the waiting, not the step.
told=0
while kill -0 "$step" 2> /dev/null; do
    # It may come before there is a driver to tell. Told twice, a driver ends at once.
    if [ "$noticed" = 1 ] && [ "$told" = 0 ] && [ -s "$driver" ]; then
        kill -TERM "$(cat "$driver")" 2> /dev/null || true
        told=1
    fi
    if [ "$noticed" = 1 ] && [ "$told" = 0 ]; then
        sleep 1
    else
        wait "$step" || true
    fi
done
code=0
wait "$step" || code=$?

# Ended by the notice, with a checkpoint: again, when there is room. What is over is over.
if [ "$noticed" = 1 ] && [ "$code" -ge 128 ]; then
    echo "stopped by Slurm's notice; queued again, and the stage goes on from its checkpoint" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
