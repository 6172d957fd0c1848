#!/usr/bin/env bash
# Trains the bundled models on one GPU in a bounded time, compiling on the CPU's cores while the GPU does something else.
# usage: train_mini.sh STAGE OBJECTS.zip LPIPS.safetensors WORK SECONDS [more options of the stage]
#   STAGE: start (views, compiled code, VAE), multiview, lgm, finish (preset folder in WORK/preset, figures, sheets)
# In a session of 30 minutes on a lent GPU: start 270, multiview 460, then lgm 380 and finish. Three calls
#   under 10 minutes each: loading, encoding and what is left of compiling come on top of SECONDS.
set -euo pipefail
stage=$1 objects=$2 lpips=$3 work=$4 seconds=${5:-0}; shift "$(( $# < 5 ? $# : 5 ))"
export PYTHONUNBUFFERED=1
mkdir -p "$work/warm"
work=$(realpath "$work")
train=(python3 -m lgm_blender.worker.training)
common=(--objects "$objects" --work "$work")
warm=(--objects "$objects" --work "$work/warm" --limit 16)

case $stage in
start)
    (cd / && python3 -c 'from gsplat.cuda._backend import _C; print("gsplat:", _C is not None)' >"$work/gsplat.log" 2>&1) &
    "${train[@]}" draw "${common[@]}" --processes 10
    cp "$work/val.npy" "$work/warm/"
    python3 -c "import numpy, sys; numpy.save(sys.argv[2], numpy.load(sys.argv[1], mmap_mode='r')[:16])" \
        "$work/train.npy" "$work/warm/train.npy"
    # A few steps on few objects fill torch's cache of compiled code, which the real runs then find.
    { "${train[@]}" vae "${warm[@]}" --steps 1 --batch 2 --no-compile &&
      "${train[@]}" multiview "${warm[@]}" --steps 2; } >"$work/warm/multiview.log" 2>&1 &
    "${train[@]}" vae "${common[@]}" --seconds "$seconds" --lpips "$lpips" "$@"
    wait
    cat "$work/gsplat.log"
    "${train[@]}" lgm "${warm[@]}" --steps 2 --lpips "$lpips" --lpips-from 0 >"$work/warm/lgm.log" 2>&1 || tail "$work/warm/lgm.log" ;;
multiview)
    "${train[@]}" multiview "${common[@]}" --seconds "$seconds" "$@" ;;
lgm)
    "${train[@]}" lgm "${common[@]}" --seconds "$seconds" --lpips "$lpips" "$@" ;;
finish)
    "${train[@]}" bundle "${common[@]}" --output "$work/preset"
    "${train[@]}" evaluate "${common[@]}" --output "$work/preset" --lpips "$lpips" ;;
*)
    echo "no stage '$stage': start, multiview, lgm or finish" >&2; exit 2 ;;
esac
