#!/bin/sh
# run.sh translation|language_model local|stock [UPDATES]: train half of the updates,
# resume, and evaluate.
set -eu
task=$1 attention=$2 updates=${3:-200}
here=$(dirname "$0")
sword=${SWORD:-/usr/share/sword} dictionary=${GCIDE:-/usr/share/dictd/gcide.dict.dz}
plugin="--user-dir $(subquad info --fairseq-user-dir)"
out=checkpoints/$task-$attention
common="--cpu --num-workers 0 --optimizer adam --adam-betas (0.9,0.98) --clip-norm 1
  --lr-scheduler inverse_sqrt --warmup-updates 40 --log-format simple
  --log-interval 25 --no-epoch-checkpoints --seed 1 --save-dir $out
  --tensorboard-logdir $out/tensorboard"

train() {
  for limit in $((updates / 2)) "$updates"; do
    # shellcheck disable=SC2086  # words
    fairseq-train "$@" $plugin $common --max-update "$limit"
  done
}

if [ "$task" = translation ]; then
  [ -d bible ] || python "$here/prepare.py" bible bible --sword "$sword"
  [ -d bible-bin ] || fairseq-preprocess --source-lang en --target-lang es \
    --trainpref bible/train --validpref bible/valid --testpref bible/test \
    --joined-dictionary --thresholdsrc 10 --thresholdtgt 10 --destdir bible-bin
  places=
  [ "$attention" = stock ] || places="
    --encoder-self-attention local --encoder-self-attention-window-size 8
    --decoder-self-attention local --decoder-self-attention-window-size 16
    --cross-attention local --cross-attention-window-size 16"
  # shellcheck disable=SC2086
  train bible-bin --task translation --arch subquad_transformer $places \
    --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 128 \
    --encoder-ffn-embed-dim 256 --encoder-attention-heads 4 \
    --decoder-attention-heads 4 --share-all-embeddings --dropout 0.1 \
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --lr 3e-3 \
    --max-tokens 2048
  # shellcheck disable=SC2086
  fairseq-generate bible-bin $plugin --cpu --path "$out/checkpoint_best.pt" \
    --beam 4 --max-len-a 1.2 --max-len-b 10 --batch-size 64 --num-workers 0 |
    tail -n 1
else
  [ -d gcide ] || python "$here/prepare.py" gcide gcide --dictionary "$dictionary"
  [ -d gcide-bin ] || fairseq-preprocess --only-source --trainpref gcide/train.txt \
    --validpref gcide/valid.txt --testpref gcide/test.txt --thresholdsrc 5 \
    --destdir gcide-bin
  places=
  [ "$attention" = stock ] || places="
    --decoder-self-attention local --decoder-self-attention-window-size 64"
  # shellcheck disable=SC2086
  train gcide-bin --task language_modeling --arch subquad_transformer_lm $places \
    --decoder-layers 2 --decoder-embed-dim 128 --decoder-input-dim 128 \
    --decoder-output-dim 128 --decoder-ffn-embed-dim 256 \
    --decoder-attention-heads 4 --share-decoder-input-output-embed --dropout 0.1 \
    --lr 3e-3 --tokens-per-sample 1024 --max-tokens 2048
  # shellcheck disable=SC2086
  fairseq-eval-lm gcide-bin $plugin --cpu --path "$out/checkpoint_best.pt" \
    --tokens-per-sample 1024 --max-tokens 4096 --num-workers 0
fi
