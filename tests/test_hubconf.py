import runpy
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return lambda *args, **kwargs: torch.hub.load(str(ROOT), *args, source="local", **kwargs)


def test_every_model_is_an_entry_point_and_says_what_it_is():
    scope = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {name: value for name, value in scope.items() if callable(value) and not name.startswith("_")}
    assert set(entries) == set(timm.list_models("slotcon*")) - {"slotcon_proto"}
    assert all(entry.__doc__ == timm.models.model_entrypoint(name).__doc__ for name, entry in entries.items())


def test_load_from_the_checkout(load):
    features = load("slotcon_r18", features_only=True, out_indices=(2, 4))(torch.zeros(1, 3, 64, 64))
    assert [f.shape[1:] for f in features] == [(128, 8, 8), (512, 2, 2)]
    assert load("slotcon_nano_proto", num_classes=7)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_pretrained_without_weights_is_an_error(load):
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        load("slotcon_r18", pretrained=True)
