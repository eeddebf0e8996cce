"""Student, teacher and method, joined: a batch goes in, the losses come out and stay apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Observer, logits_of
from dotkd.methods.objective import Method, Objective, nearest_or_refuse
from dotkd.side_stream import SideStream
from dotkd.teachers import Ensemble


class Losses(NamedTuple):
    """What a student is trained on: both losses, unweighted, shape (); and its logits, (N, C)."""

    task: Tensor
    distill: Tensor
    logits: Tensor


class Distiller:
    """Computes the task loss and the distillation loss of a batch.

    >>> student, teacher = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    >>> distiller = Distiller(student, teacher, method="kd", temperature=4.0)
    >>> task, distill, logits = distiller(torch.randn(8, 4), torch.randint(0, 3, (8,)))

    A model may return its logits, a tuple that starts with them, or an object with ``.logits``. The teacher is put into
    eval mode and frozen, and stays so. Methods that look at features find them by hooks, and may bring parameters of
    their own: give the optimizer :meth:`parameters`.

    Args:
        teacher: None for methods in which a student teaches itself (``corsd``).
        method: a name from ``dotkd.methods.METHODS``; any function ``(student_logits, teacher_logits, ...) -> ()``;
            the class of a feature method; or ``module:attr``, where one of these is. What its signature names of
            ``target``, ``index``, ``progress``, ``temperature`` is passed.
        temperature: divides the logits of both inside the distillation loss; dimensionless, > 0; None: as published.
        label_smoothing: of the task loss (cross-entropy), in [0, 1).
        options: further keyword arguments of the method.
        student_features, teacher_features: module paths whose outputs a feature method sees, shallow to deep; by
            default those of the model's family.
        example: (N, ...) inputs to try both models on; needed by methods that look inside.
        targets: (M,) int64 labels of the training split; needed by methods that draw samples of other classes (CRD).
        teacher_learns: module paths of the teacher that stay trainable. They learn by a cross-entropy of the teacher's
            own, ``acclimation_weight`` times, added to the task loss; the student's losses do not reach them.
        checks: look at the values of targets and teacher logits that lie on a CPU. On other devices looking would make
            the host wait; there an optimizer of this library skips the step.

    Raises:
        ValueError: unknown method, option or module; teacher and student share parameters; a value outside its rule.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        method: Method = "kd",
        *,
        temperature: float | None = None,
        label_smoothing: float = 0.0,
        options: Mapping[str, Any] | None = None,
        student_features: Sequence[str] = (),
        teacher_features: Sequence[str] = (),
        example: Tensor | None = None,
        targets: Tensor | None = None,
        teacher_learns: Sequence[str] = (),
        acclimation_weight: float = 1.0,
        checks: bool = True,
    ) -> None:
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"expected `temperature` > 0 and finite, got {temperature}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected `label_smoothing` in [0, 1), got {label_smoothing}")
        self.objective = Objective(method, temperature=temperature, options=options)
        if teacher is None and not self.objective.teacherless:
            raise ValueError(f"expected a teacher for method {method!r}, got None")
        self.student = student
        self.teacher = None if teacher is None or self.objective.teacherless else _frozen(student, teacher)
        self.label_smoothing, self.checks = label_smoothing, checks
        self._learning = self._unfreeze(teacher_learns)
        self._acclimation_weight = acclimation_weight
        self._forward: Callable[[Tensor], Any] = student
        self._side: SideStream | None = None
        self._observers: tuple[Observer, Observer] | None = None
        if self.objective.looks_inside:
            if isinstance(teacher, Ensemble):
                raise ValueError(f"expected one teacher for method {method!r}, which looks inside it, got several")
            if example is None:
                raise ValueError(f"expected `example` inputs for method {method!r}, which looks inside the models")
            needs = self.objective.needs
            seen = Observer(student, "student", needs, points=student_features, example=example)
            taught = seen
            if self.teacher is not None:
                taught = Observer(self.teacher, "teacher", needs, points=teacher_features, example=example)
            self.objective.build(seen.anatomy, taught.anatomy, targets)
            self._observers = seen, taught
            assert self.objective.module is not None
            self.objective.module.to(example.device)

    @property
    def extra(self) -> nn.ModuleDict:
        """What is trained besides the student: ``method``, its projectors, and the parts of the teacher that learn."""
        parts = {"method": self.objective.module} if self.objective.module is not None else {}
        learning = {f"teacher_{path.replace('.', '_')}": module for path, module in self._learning.items()}
        return nn.ModuleDict({**parts, **learning})

    @property
    def looks_inside(self) -> bool:
        """Whether logits alone do not settle the distillation loss."""
        return self.objective.looks_inside

    @property
    def teacher_is_fixed(self) -> bool:
        """Whether equal inputs always get equal logits from the teacher."""
        return self.teacher is not None and not self._learning

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer has to train: the student's parameters, then those of :attr:`extra`."""
        return [*self.student.parameters(), *self.extra.parameters()]

    def train(self) -> None:
        """Put the student and the method into training mode; the teacher stays in eval mode."""
        self.student.train()
        if self.objective.module is not None:
            self.objective.module.train()

    def run_student_by(self, forward: Callable[[Tensor], Any]) -> None:
        """Call ``forward``, which wraps the student (compiled, or in DistributedDataParallel), from now on."""
        self._forward = forward

    def overlap(self) -> None:
        """On CUDA, run a teacher that does not learn on a stream of its own from now on, while the student runs.

        Small models leave a GPU room for both; what both have in memory at a time grows by the teacher's activations.
        """
        self._side = SideStream()

    def __call__(
        self,
        inputs: Tensor,
        targets: Tensor,
        teacher_logits: Tensor | None = None,
        *,
        strong: Tensor | None = None,
        index: Tensor | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """The losses of one batch; the distillation losses of a method with several streams are added up.

        Args:
            inputs: (N, ...), fed to the student, and to the teacher unless its logits are given.
            targets: (N,), int64 class indices in [0, C); or (N, C), the shares of the classes in mixed samples.
            teacher_logits: (N, C), where they are known already.
            strong: (N, ...), a second, strongly augmented view of the samples, for methods that compare two.
            index: (N,) int64, positions in the training split; also what an error calls the samples.
            progress: share of the training that is done, in [0, 1).

        Raises:
            ValueError: teacher and student disagree on the shape of the logits; something that the method needs is
                missing; with ``checks`` also a target outside [0, C) or teacher logits that are not finite.
            TypeError: targets that are not int64.
        """
        streams, logits = self.streams(inputs, targets, teacher_logits, strong=strong, index=index, progress=progress)
        task = streams.pop("task")
        distill = list(streams.values())
        return Losses(task, sum(distill[1:], distill[0]), logits)

    def streams(
        self,
        inputs: Tensor,
        targets: Tensor,
        teacher_logits: Tensor | None = None,
        *,
        strong: Tensor | None = None,
        index: Tensor | None = None,
        progress: float = 0.0,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """As calling the distiller, with the losses by stream, ``task`` first; returns (losses, student logits)."""
        seen, taught = self.observe(inputs, targets, teacher_logits, index=index)
        self._check_targets(targets, seen.logits)
        losses = {"task": self._cross_entropy(seen.logits, targets)}
        if self._learning:
            losses["task"] = losses["task"] + self._acclimation_weight * self._cross_entropy(taught.logits, targets)
            taught = taught.detached()
        given: dict[str, Tensor | float | None] = {"target": targets, "index": index, "progress": progress}
        if self.objective.wants_strong:
            if strong is None:
                raise ValueError("this method compares two views of each sample: expected `strong`, got None")
            given["student_strong"] = logits_of(self._forward(strong))
            given["teacher_strong"] = self.teacher_logits(strong, targets, index=index)
            losses["task"] = losses["task"] + self._cross_entropy(given["student_strong"], targets)
        for name, loss in self.distill_losses(seen, taught, **given).items():
            losses[name] = losses[name] + loss if name in losses else loss
        return losses, seen.logits

    def observe(
        self, inputs: Tensor, targets: Tensor, teacher_logits: Tensor | None = None, *, index: Tensor | None = None
    ) -> tuple[Activations, Activations]:
        """What the method sees of the student and of its teacher; where there is none, of the student twice."""
        taught: Callable[[], Activations] | None = None
        if teacher_logits is not None and not self.looks_inside:
            taught = partial(Activations, teacher_logits)
        elif self.teacher is not None:
            taught = partial(self._observe_teacher, inputs, targets, index)
            if self._side and self.teacher_is_fixed:
                taught = self._side.start(taught, [inputs, targets])
        if self._observers:
            seen = self._observers[0](inputs, self._forward)
        else:
            seen = Activations(logits_of(self._forward(inputs)))
        return seen, seen if taught is None else taught()

    def distill_losses(
        self, student: Activations, teacher: Activations, **given: Tensor | float | None
    ) -> dict[str, Tensor]:
        """The method's losses alone, by stream."""
        if student.logits.shape != teacher.logits.shape:
            raise ValueError(
                "expected teacher and student to give logits of one shape, "
                f"got {tuple(teacher.logits.shape)} and {tuple(student.logits.shape)}"
            )
        return self.objective(student, teacher, **given)

    @torch.no_grad()
    def teacher_logits(self, inputs: Tensor, targets: Tensor | None = None, *, index: Tensor | None = None) -> Tensor:
        """The teacher's logits, (N, C), always in eval mode. Raises as calling the distiller does."""
        assert self.teacher is not None
        if self.teacher.training:
            self.teacher.eval()
        logits = logits_of(self._ask(self.teacher, inputs, targets))
        if self.checks and logits.device.type == "cpu":
            refuse_non_finite(logits, index)
        return logits

    def _observe_teacher(self, inputs: Tensor, targets: Tensor, index: Tensor | None) -> Activations:
        assert self.teacher is not None
        if self.teacher.training:
            self.teacher.eval()
        with torch.set_grad_enabled(bool(self._learning)):
            if self._observers:
                seen = self._observers[1](inputs)
            else:
                seen = Activations(logits_of(self._ask(self.teacher, inputs, targets)))
        if self.checks and seen.logits.device.type == "cpu":
            refuse_non_finite(seen.logits, index)
        return seen

    @staticmethod
    def _ask(teacher: nn.Module, inputs: Tensor, targets: Tensor | None) -> Any:
        return teacher(inputs, targets) if isinstance(teacher, Ensemble) else teacher(inputs)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)

    def _check_targets(self, targets: Tensor, logits: Tensor) -> None:
        if targets.dim() == 2 and targets.is_floating_point() and not self.objective.wants_target:
            return
        if targets.dtype != torch.int64:
            raise TypeError(f"expected targets of dtype torch.int64, got {targets.dtype}")
        if self.checks and targets.device.type == "cpu":
            outside = targets[(targets < 0) | (targets >= logits.shape[-1])]
            if outside.numel():
                raise ValueError(f"expected targets in [0, {logits.shape[-1]}), got {int(outside[0])}")

    def _unfreeze(self, paths: Sequence[str]) -> dict[str, nn.Module]:
        if paths and self.teacher is None:
            raise ValueError(f"there is no teacher of which {', '.join(paths)} could learn")
        learning: dict[str, nn.Module] = {}
        for path in paths:
            assert self.teacher is not None
            known = dict(self.teacher.named_modules())
            learning[path] = known[nearest_or_refuse("module of the teacher", path, known)].requires_grad_(True)
        return learning


def _frozen(student: nn.Module, teacher: nn.Module) -> nn.Module:
    shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    if shared:
        names = [name for name, p in student.named_parameters() if id(p) in shared]
        raise ValueError(f"teacher and student share {len(names)} parameters ({names[0]}, ...): copy one of them")
    return teacher.eval().requires_grad_(False)


def refuse_non_finite(teacher_logits: Tensor, sample_ids: Tensor | None = None) -> None:
    """Raise ValueError naming the samples whose teacher logits, (N, C), are not all finite."""
    bad = (~teacher_logits.isfinite().flatten(1).all(1)).nonzero().flatten().cpu()
    if bad.numel():
        ids = (bad if sample_ids is None else sample_ids[bad]).tolist()
        raise ValueError(f"the teacher's logits are not finite for {len(ids)} samples: {ids[:10]}")
