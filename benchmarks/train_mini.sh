#!/usr/bin/env bash
# Trains the bundled models. Run again with the same arguments it goes on where it stopped, from checkpoints of each minute.
# usage: train_mini.sh OBJECTS.zip LPIPS.safetensors WORK [VAE_SECONDS MULTIVIEW_SECONDS LGM_SECONDS [PRESET]]
# With a PRESET (lgm_blender/weights/mini) LGM and the multi-view model go on from it, its VAE is kept, and half of LGM's
# steps see views that its multi-view model draws of variant 3, which that model has not seen. With two GPUs LGM trains on
# the first while the VAE and the multi-view model train on the second. The seconds do not count drawing (5 x 45 s with 30
# processes), compiling (1 to 2 minutes each), encoding (55 s a set) and generating.
set -euo pipefail
objects=$(realpath "$1") lpips=$(realpath "$2") work=$3
vae=${4:-200} multiview=${5:-950} lgm=${6:-1050} preset=${7:+$(realpath "$7")}
mkdir -p "$work"
work=$(realpath "$work")
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1
train() { python3 -m lgm_blender.worker.training "$@" --objects "$objects" --work "$work"; }

# gsplat compiles on the CPU's cores meanwhile.
(cd / && python3 -c 'from gsplat.cuda._backend import _C; print("gsplat:", _C is not None)' >"$work/gsplat.log" 2>&1) &
[ -e "$work/drawn" ] || { train draw --processes "$(nproc)"; touch "$work/drawn"; }
for variant in 1 2 3; do
    [ -e "$work/varied-$variant" ] ||
        { train draw --processes "$(nproc)" --split train --variant $variant; touch "$work/varied-$variant"; }
done
[ -e "$work/shapes" ] || { train draw --processes "$(nproc)" --procedural 1100; touch "$work/shapes"; }
wait
cat "$work/gsplat.log"

train_multiview() {
    [ -n "$preset" ] || [ -e "$work/vae/config.json" ] || train vae --resume --seconds "$vae" --lpips "$lpips"
    [ -e "$work/multiview/multiview.safetensors" ] ||
        train multiview --resume --seconds "$multiview" --sets train train-1 train-2 procedural \
            --every 4 4 4 6 --optimizer muon --batch 192 \
            ${preset:+--init "$preset/multiview"}
}
train_lgm() {
    [ -z "$preset" ] || [ -e "$work/train-3.generated.npz" ] || train generate --preset "$preset" --sets train-3
    [ -e "$work/lgm/model.safetensors" ] ||
        train lgm --resume --seconds "$lgm" --sets train train-1 --optimizer muon --batch 16 --rate 6e-4 \
            --inputs-judged 2 --others-judged 6 --surface-weight 0.6 --lpips "$lpips" --lpips-from 0.1 \
            ${preset:+--init "$preset/lgm/model.safetensors" --generated train-3}
}
if [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -gt 1 ]; then
    (CUDA_VISIBLE_DEVICES=1 train_multiview >"$work/multiview.txt" 2>&1) &
    CUDA_VISIBLE_DEVICES=0 train_lgm
    wait $! || { tail "$work/multiview.txt"; exit 1; }
else
    train_multiview
    train_lgm
fi
train bundle --output "$work/preset"
python3 -m lgm_blender.worker evaluate --data "$objects" --preset "$work/preset" --lpips "$lpips" \
    --output "$work/evaluation" --overwrite
