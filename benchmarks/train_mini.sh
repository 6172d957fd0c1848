#!/usr/bin/env bash
# Trains the bundled models. Run again with the same arguments it resumes where it stopped, from checkpoints of each minute.
# OBJECTS.zip may be several archives, joined (`python -m lgm_blender.training join`).
# usage: train_mini.sh OBJECTS.zip LPIPS.safetensors WORK [VAE_SECONDS MULTIVIEW_SECONDS LGM_SECONDS LAST_SECONDS [PRESET]]
# With a PRESET (lgm_blender/weights/mini) LGM and the multi-view model start from it, its VAE is kept, and LGM sees views
# that the preset's multi-view model makes of variant 13; in its LAST_SECONDS those of the new one, of 11 and 12. That model
# has not seen these variants. Version 10 had no such last part (LAST_SECONDS of 0), and other variants than the preset had
# learnt from (VARIANTS="4 5 6 7 8" in the environment). With two GPUs LGM trains on the first while the VAE and the
# multi-view model train on the second, and at last on both.
# The seconds do not count rendering (20 to 35 s a set with 30 processes), compiling (1 to 2 minutes each), encoding (40 s a
# set) and generating (50 s a set).
set -euo pipefail
[ $# -ge 3 ] || { sed -n 's/^# usage/usage/p' "$0"; exit 2; }
objects=$(realpath "$1") lpips=$(realpath "$2") work=$3
variants=${VARIANTS:-1 2 3}
vae=${4:-200} multiview=${5:-950} lgm=${6:-1050} last=${7:-450} preset=${8:+$(realpath "$8")}
mkdir -p "$work"
work=$(realpath "$work")
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1
gpus=$(nvidia-smi -L 2>/dev/null | grep -c GPU || true)
export LGM_BLENDER_EGL_DEVICES=$((gpus > 1 ? gpus : 1))
stage() { python3 -m lgm_blender.training "$1" --work "$work" "${@:2}"; }
train() { stage "$1" --objects "$objects" "${@:2}"; }
render() { train render --processes "$(nproc)" "$@"; }
generate() { train generate --processes "$(nproc)" "$@"; }
once() { [ -e "$work/$1.done" ] || { "${@:2}"; touch "$work/$1.done"; }; }  # a stage, and a mark that it is over

# gsplat compiles on the CPU's cores meanwhile.
(cd / && python3 -c 'from gsplat.cuda._backend import _C; print("gsplat:", _C is not None)' >"$work/gsplat.log" 2>&1) &
once views render --views 18
once orbits render --kind orbits
for variant in $variants; do once "orbits-$variant" render --kind orbits --split train --variant $variant; done
once shapes render --kind orbits --procedural 3000
once placed-val render --kind placed --split val
for variant in 11 12 13; do once "placed-$variant" render --kind placed --split train --variant $variant; done
wait
cat "$work/gsplat.log"

lgm_options=(--views 18 --optimizer muon --batch 16 --supervised-inputs 2 --supervised-others 6 --lpips "$lpips"
    --lpips-from 0.1 --lpips-weight 0.3 --generated-lpips-weight 0.8 --translucency-weight 1.5)
train_multiview() {
    [ -n "$preset" ] || [ -e "$work/vae/config.json" ] ||
        train vae --resume --seconds "$vae" --lpips "$lpips" --views 18 --optimizer muon
    once multiview train multiview --resume --seconds "$multiview" --sets train $(printf 'train-%s ' $variants) procedural \
        --optimizer muon --batch 192 ${preset:+--init "$preset/multiview"}
}
train_lgm() {
    [ -z "$preset" ] || once generated-before generate --preset "$preset" --sets train-13-placed val-placed
    once lgm train lgm --resume --seconds "$lgm" --learning-rate 4e-4 --surface-weight 0.4 "${lgm_options[@]}" \
        ${preset:+--init "$preset/lgm/model.safetensors" --generated train-13-placed}
}
if [ "$gpus" -gt 1 ]; then
    (CUDA_VISIBLE_DEVICES=1 train_multiview >"$work/multiview.txt" 2>&1) &
    CUDA_VISIBLE_DEVICES=0 train_lgm
    wait $! || { tail "$work/multiview.txt"; exit 1; }
else
    train_multiview
    train_lgm
fi
# The last part with the views of the model that LGM will be used with.
if [ "$last" -gt 0 ]; then
    [ -e "$work/new/preset.json" ] || stage bundle --output "$work/new"
    once generated generate --preset "$work/new" --sets train-11-placed train-12-placed val-placed
    [ -e "$work/lgm-first" ] || mv "$work/lgm" "$work/lgm-first"
    on_all() { accelerate launch --num_processes "$((gpus > 1 ? gpus : 1))" -m lgm_blender.training "$@"; }
    once last on_all lgm --objects "$objects" --work "$work" --resume --seconds "$last" --learning-rate 3e-4 --surface-weight 0.1 \
        "${lgm_options[@]}" --lpips-from 0 --init "$work/lgm-first/model.safetensors" --generated train-11-placed train-12-placed
fi
stage bundle --output "$work/preset"
python3 -m lgm_blender.training evaluate --data "$objects" --preset "$work/preset" --lpips "$lpips" \
    --output "$work/evaluation" --overwrite
