"""A few steps of every form of the CUDA kernels, to be run under compute-sanitizer by test_sanitizer.py."""

from __future__ import annotations

import torch

from pymtg import DataMap, MultiTaskLoss, TaskLayout


def main() -> None:
    for classes in ([1] * 40, [2] * 500, [3, 40, 1, 2], [300, 2, 12_000]):
        layout = TaskLayout([f"task{t}" for t in range(len(classes))], classes)
        labels = torch.tensor(classes).clamp(min=2)
        for missing in (False, True):
            data_map = DataMap(30, layout, missing=missing, device="cuda")
            loss = MultiTaskLoss(layout, data_map, backend="cuda")
            for dtype in (torch.float32, torch.bfloat16):
                logits = torch.randn(37, layout.num_logits).to("cuda", dtype).requires_grad_()
                targets = (torch.rand(37, len(classes)) * labels).long()
                if missing:
                    targets[torch.rand(targets.shape) < 0.3] = -100
                (3 * loss(logits, targets.cuda(), torch.randint(30, (37,)).cuda())).backward()
            data_map.update(torch.rand(37, len(classes)).cuda(), torch.randint(30, (37,)).cuda(), backend="cuda")
            assert int(data_map.count.max()) >= 1
    torch.cuda.synchronize()
    print("steps done")


if __name__ == "__main__":
    main()
