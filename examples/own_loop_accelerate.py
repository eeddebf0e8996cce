"""The loop of own_loop.py under Accelerate, which calls backward() itself: DOT joins both losses into one for it.

In one process it ends with the very same weights.
"""

import torch.nn.functional as F
from accelerate import Accelerator
from own_loop import setup
from torch import nn

import dotkd


def main() -> nn.Module:
    accelerator = Accelerator(cpu=True)
    teacher, student, loader = setup()
    dot = dotkd.DOT(student.parameters(), lr=0.05, momentum=0.9, delta=0.075)
    # prepare() wraps what it is given, and its wrapper knows torch's methods alone. So both names are kept: the
    # optimizer itself joins the losses, the wrapper steps (it waits for accumulated batches, and unscales fp16).
    student, optimizer, loader = accelerator.prepare(student, dot, loader)
    teacher = teacher.to(accelerator.device)
    for x, y in (batch for _ in range(10) for batch in loader):
        logits = student(x)
        task, distill = F.cross_entropy(logits, y), dotkd.losses.kd(logits, teacher(x), temperature=4.0)
        # Whatever factor Accelerate puts on the joined loss reaches both streams.
        accelerator.backward(dot.join(task=0.1 * task, distill=0.9 * distill))
        optimizer.step()
        optimizer.zero_grad()
    accelerator.print(f"last batch: task loss {task:.4f}, distillation loss {distill:.4f}")
    return accelerator.unwrap_model(student)


if __name__ == "__main__":
    main()
