"""A loop of one's own with DOT. It differs from plain distillation with SGD in the two lines marked (*)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dotkd

digits = dotkd.data.load("digits")  # 8x8 pixels, at hand without a download


def setup() -> tuple[nn.Module, nn.Module, DataLoader]:
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.ReLU(), nn.Linear(n, 10)) for n in (256, 16))
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(*digits.train), batch_size=64, shuffle=True, generator=order)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for x, y in (batch for _ in range(5) for batch in loader):
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher.eval().requires_grad_(False), student, loader


def main() -> nn.Module:
    teacher, student, loader = setup()
    optimizer = dotkd.DOT(student.parameters(), lr=0.05, momentum=0.9, delta=0.075)  # (*)
    for x, y in (batch for _ in range(10) for batch in loader):
        logits = student(x)
        task, distill = F.cross_entropy(logits, y), dotkd.losses.kd(logits, teacher(x), temperature=4.0)
        optimizer.backward(task=0.1 * task, distill=0.9 * distill)  # (*)
        optimizer.step()
        optimizer.zero_grad()
    print(f"last batch: task loss {task:.4f}, distillation loss {distill:.4f}")
    return student


if __name__ == "__main__":
    main()
