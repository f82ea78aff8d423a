#!/usr/bin/env bash
# timm 1.0.31 and transformers 5.24.0: AutoModel fails on every folder that timm's save_for_hf (push_to_hf_hub) writes.
#
# transformers loads timm models from the Hub, and its wrapper hands model_args of config.json to timm. This timm
# always writes model_args, with num_classes, in_chans and global_pool of the model, also if the caller gives none.
# The wrapper passes num_classes itself, so Python refuses the call: a TypeError about a function of transformers that
# the user never called. timm loads the same folder. Without num_classes in model_args (it is in config.json once
# more, beside them) both load.
#
# Seen: "saved by timm, with model_args global_pool, in_chans, num_classes: timm 512 features, transformers TypeError;
# without num_classes in them: timm 512 features, transformers 512 features"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 timm==1.0.31 \
  transformers==5.24.0 pillow numpy
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import json
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from transformers import AutoModel
from transformers.utils import logging

logging.disable_progress_bar()
images = torch.zeros(1, 3, 64, 64)
save_for_hf(timm.create_model("resnet10t", num_classes=0), "saved")
config = Path("saved/config.json")
content = json.loads(config.read_text())
stated = ", ".join(sorted(content["model_args"]))


def in_timm() -> str:
    return f"timm {timm.create_model('local-dir:saved', pretrained=True).eval()(images).shape[1]} features"


def in_transformers() -> str:
    try:
        return f"transformers {AutoModel.from_pretrained('saved').eval()(images).pooler_output.shape[1]} features"
    except TypeError as error:
        assert "multiple values for keyword argument 'num_classes'" in str(error), error
        return "transformers TypeError"


before = in_timm(), in_transformers()
del content["model_args"]["num_classes"]
config.write_text(json.dumps(content))
after = in_timm(), in_transformers()
print(f"saved by timm, with model_args {stated}: {', '.join(before)}; without num_classes in them: {', '.join(after)}")
if before[1] != "transformers TypeError" or after[1] != "transformers 512 features":
    raise SystemExit("this has changed: transformers loaded such a folder only without num_classes before")
PY
