#!/usr/bin/env bash
# The training of @RUN@, without iis-finetune.
set -euo pipefail
cd @FOLDER@
# LLaMA-Factory would go on with what lies in output/: give a new folder, output_dir=/some/where.
[[ $# -gt 0 || ! -e output ]] || { echo 'output/ is there: say output_dir=DIR' >&2; exit 2; }
unset ${!ACCELERATE_*} ${!LLAMABOARD_*} RANK LOCAL_RANK WORLD_SIZE USE_V1 ALLOW_EXTRA_ARGS
@EXPORTS@
export PATH=@PROGRAMS@:$PATH
exec @COMMAND@ "$@"
