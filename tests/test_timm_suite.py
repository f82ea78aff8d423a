"""timm's own model tests, of our models. They come with timm's source distribution and are not copied."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm


@pytest.mark.network
def test_timms_own_model_tests_pass(tmp_path):
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*download, "--dest", str(tmp_path), f"timm=={timm.__version__}"], check=True, timeout=300)
    (archive,) = tmp_path.glob("timm-*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(tmp_path, filter="data")
    (suite,) = tmp_path.glob("timm-*/tests/test_models.py")
    options = ["--quiet", "-p", "only_slotcon", "-p", "no:cacheprovider", "-n", "logical"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, f"--rootdir={suite.parent}", str(suite)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent / "support")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    summary = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stdout[-5000:]
    passed = int(summary.split(" passed")[0].split()[-1])
    assert passed >= 10 * 11, summary  # eleven models, ten tests of each
    assert "failed" not in summary
