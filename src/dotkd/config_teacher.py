"""From the configuration of a distillation to that of the run that trains its teacher."""

from __future__ import annotations

from typing import Any

from dotkd.config import Config, ConfigError

# What has no meaning for a model that learns from labels alone.
UNTAUGHT: dict[str, Any] = {
    "method": "none",
    "method_options": {},
    "student_features": (),
    "teacher_features": (),
    "temperature": None,
    "task_weight": None,
    "distill_weight": None,
    "distill_warmup_epochs": None,
    "mix": "none",
    "cache": None,
    "cache_top_k": None,
}


def teacher_config(config: Config) -> Config:
    """The config of the run that trains the teacher of ``config``; raises ConfigError where there can be none."""
    try:
        return config.replace(
            student=config.teacher,
            student_options=config.teacher_options,
            student_weights=None,
            **UNTAUGHT,
            trainer="adamw" if "adamw" in config.trainer else "sgd",
            epochs=config.teacher_epochs or config.epochs,
            lr=config.teacher_lr or config.lr,
            label_smoothing=0.0,
            ema=None,
        )
    except ConfigError as error:
        lines = "\n".join(f"the teacher's training: {problem}" for problem in error.problems)
        raise ConfigError(lines) from error
