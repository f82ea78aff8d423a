#!/usr/bin/env bash
# timm 1.0.31: create_model(..., pretrained=True, num_classes=N) accepts a file that lacks whole layers of the body, if
# N is not the number of classes that the pretrained configuration states.
#
# One expects that another num_classes only drops the weights of the classifier. But it also switches strict loading
# off for everything else: without the last stage in the file, that stage keeps its random values and nothing is
# printed or raised. Without num_classes the same file is refused, as it should be. num_classes=0, the usual call for
# features, is the lenient one.
#
# Seen: "num_classes as stated: refused, 25 keys are missing; num_classes=0: loaded, layer4 is random; num_classes=10:
# loaded, layer4 is random"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import timm
import torch
from safetensors.torch import save_file

whole = timm.create_model("resnet18").state_dict()
save_file({name: value for name, value in whole.items() if not name.startswith("layer4.")}, "three_stages.safetensors")


def load(**options: int) -> str:
    overlay = {"file": "three_stages.safetensors"}
    try:
        model = timm.create_model("resnet18", pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except RuntimeError as error:
        absent = str(error).split("Missing key(s) in state_dict: ")[1].splitlines()[0]
        return f"refused, {absent.count(', ') + 1} keys are missing"
    assert torch.equal(model.layer3[0].conv1.weight, whole["layer3.0.conv1.weight"])
    assert not torch.equal(model.layer4[0].conv1.weight, whole["layer4.0.conv1.weight"])
    return "loaded, layer4 is random"


found = [load(), load(num_classes=0), load(num_classes=10)]
print("; ".join(f"{how}: {what}" for how, what in zip(("num_classes as stated", "num_classes=0", "num_classes=10"), found)))
if not found[0].startswith("refused") or found[1:] != ["loaded, layer4 is random"] * 2:
    raise SystemExit("this has changed: another num_classes switched strict loading off before")
PY
