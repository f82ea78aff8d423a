#!/usr/bin/env bash
# onnxscript 0.7.0 (torch 2.14.1): torch.onnx.export writes antialiased bicubic resizing with another kernel than torch's.
#
# torch's antialiased bicubic kernel has a = -0.5 (as Pillow's) and leaves cells outside of the image out; its plain
# bicubic one has a = -0.75. onnxscript, which translates torch's operators, wrote a = -0.75 with the cells outside for
# both, until 0.7.1. Nobody calls this resizing in person: it is how timm's transformers fit their position embedding
# to another image size (dynamic_img_size). The exported model runs, and its features are off by some 1e-3.
#
# Seen: "10 x 10 positions to 4 x 4, largest error relative to the largest value: onnxscript 0.7.0 0.13, 0.7.1 3e-07"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
cat > "$folder/export.py" <<'PY'
import sys

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F


class Resize(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, (4, 4), mode="bicubic", antialias=True)


path, net = sys.argv[1], Resize().eval()
x = torch.randn(1, 8, 10, 10, generator=torch.Generator().manual_seed(0))
torch.onnx.export(net, (x,), path, dynamo=True, opset_version=18, input_names=["x"], verbose=False)
found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]
expected = net(x).numpy()
print(np.abs(found - expected).max() / np.abs(expected).max())
PY
errors=()
for version in 0.7.0 0.7.1; do
  "$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy onnx==1.23.2 \
    onnxscript==$version onnxruntime==1.32.0
  errors+=("$("$folder/env/bin/python" "$folder/export.py" "$folder/$version.onnx" 2>/dev/null | tail -n 1)")
done
"$folder/env/bin/python" - "${errors[@]}" <<'PY'
import sys

old, new = (float(error) for error in sys.argv[1:])
print(
    "10 x 10 positions to 4 x 4, largest error relative to the largest value: "
    f"onnxscript 0.7.0 {old:.2g}, 0.7.1 {new:.0e}"
)
if not (old > 1e-3 and new < 1e-5):
    raise SystemExit("this has changed: 0.7.0 wrote another kernel than torch's before, and 0.7.1 did not")
PY
