"""The ARM binaries under qemu-user: push, pull, restart, pull again."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "e2e"))

import oci  # noqa: E402
import server  # noqa: E402


@pytest.fixture
def binary(request, tmp_path, monkeypatch):
    """What runs the binary in its emulator, which need not be registered with
    the kernel."""
    arch, emulator = request.param
    wrapper = tmp_path / f"dims-{arch}"
    wrapper.write_text(f'#!/bin/sh\nexec {emulator} {ROOT}/dims-{arch} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(server, "BINARY", str(wrapper))


@pytest.mark.parametrize("binary", [("arm64", "qemu-aarch64"), ("armhf", "qemu-arm")],
                         indirect=True, ids=lambda row: row[0])
def test_push_restart_pull(binary, tmp_path):
    dims = server.Dims(tmp_path, ["--workers", "2"])
    # Layers that take several buffers, and both algorithms' backends.
    image = oci.make_image(dims.client(), "smoke/arm", layers=2, size=1 << 20)
    layer = oci.noise(1 << 20)
    digest = oci.push_blob(dims.client(), "smoke/arm", layer, "sha512")
    oci.check_image(dims.client(), "smoke/arm", "latest", image)
    dims.stop()

    dims = server.Dims(tmp_path, ["--workers", "2"])
    oci.check_image(dims.client(), "smoke/arm", image.digest, image)
    answer = dims.client().get(f"/v2/smoke/arm/blobs/{digest}")
    assert (answer.status, answer.body) == (200, layer)
    dims.stop()
