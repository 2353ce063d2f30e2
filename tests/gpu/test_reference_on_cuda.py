"""CUDA tensors are served by the reference backend: the same losses, gradients and map as on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pymtg import DataMap, MultiTaskLoss, TaskLayout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_loss_gradient_and_map_as_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    from pymtg import cluster_tasks

    layout = TaskLayout(["a", "b", "c"], [1, 5, 2])
    results = {}
    logits, targets = torch.randn(64, 8), torch.stack([torch.randint(0, n, (64,)) for n in (2, 5, 2)], 1)
    ids = torch.randint(0, 40, (64,))
    for device in ("cpu", "cuda"):
        data_map = DataMap(40, layout, device=device)
        x = logits.clone().to(device).requires_grad_()
        MultiTaskLoss(layout, data_map)(x, targets.to(device), ids.to(device)).backward()
        assert x.grad is not None
        results[device] = [x.grad.cpu(), data_map.mean.cpu(), data_map.std.cpu(), data_map.correctness.cpu()]
        data_map.save(tmp_path / f"{device}.safetensors")
        assert cluster_tasks(data_map, 2, random_state=0).num_tasks == 3
    for ours, theirs in zip(results["cuda"], results["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert DataMap.load(tmp_path / "cuda.safetensors").mean.shape == (40, 3)
