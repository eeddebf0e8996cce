"""The protocol of a tuning: all that decides which trials are made and which one is chosen, and the same in words.

OUT/tuning.yaml              the protocol as it was first given; the same command goes on, another one is refused
OUT/trials.journal           optuna's storage, a study for each trainer
OUT/teacher/                 trained once, before the first trial, with the seed of the configuration; teaches all
OUT/TRAINER/trial-0003/      run folders; one that was pruned has no summary.json
OUT/final/TRAINER/seed-K/    run folders of the final test
OUT/tune.json                protocol, best, trials, final test
OUT/best-TRAINER.yaml        the configuration of the best trial, for `dotkd train` and `dotkd compare`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from dotkd.evidence.comparison import check_names
from dotkd.tuning.space import Space, Value, make_space, parse_space, refuse_unused

if TYPE_CHECKING:
    from dotkd.config import Config

FILE = "tuning.yaml"
# Ended trials of a trainer before its sampler takes account of them, and before a trial of it can be pruned.
RANDOM_TRIALS = 10
UNPRUNED_TRIALS = 5


class Protocol(NamedTuple):
    """What is tuned. configs: {trainer: the configuration as it was given, which is its trial 0}."""

    name: str
    out: Path
    configs: dict[str, Config]
    spaces: dict[str, Space]
    trials: int

    @property
    def config(self) -> Config:
        """What the trainers share: the configuration with the first of them."""
        return next(iter(self.configs.values()))

    @property
    def first_pruning(self) -> int:
        """The first epoch (from 1) after which a trial may be pruned: a third of the epochs, rounded up."""
        return -(-self.config.epochs // 3)

    @property
    def teacher(self) -> Path | None:
        """The folder the teacher is trained in; None where none is needed, or its weights are given."""
        from dotkd.methods.objective import Objective

        config = self.config
        taught = config.method != "none" and not Objective(config.method).teacherless
        given = config.teacher_weights is not None or config.teacher_epochs == 0 or config.teacher == "self"
        return self.out / "teacher" if taught and not given else None

    def configured(self, trainer: str, params: Mapping[str, Value], *, seed: int | None = None) -> Config:
        """The configuration of one run of `trainer` with `params`; seed: None for that of all trials."""
        config = self.configs[trainer]
        weights = config.teacher_weights if self.teacher is None else str(self.teacher.resolve())
        return config.replace(**params, teacher_weights=weights, seed=config.seed if seed is None else seed)


def make_protocol(
    source: str,
    overrides: Sequence[str],
    *,
    trainers: str,
    trials: int,
    spans: Sequence[str],
    out: Path | None,
) -> Protocol:
    """The protocol that the words of a command ask for. trainers: names with commas between; spans: as `--space`.

    Raises ValueError for whatever is wrong in them, ConfigError for a configuration that a trainer cannot have.
    """
    from dotkd.config import Config

    if trials < 1:
        raise ValueError(f"expected --trials of at least 1, got {trials}")
    names = [name.strip() for name in trainers.split(",") if name.strip()]
    check_names("--trainers", names, get_args(Config.model_fields["trainer"].annotation))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected --trainers to name each once, got {trainers!r}")
    if any(word.partition("=")[0].strip() == "trainer" for word in overrides):
        raise ValueError("trainer is what is tuned, each by itself: give it as --trainers")
    given = parse_space(spans)
    configs = {name: Config.from_sources(source, [*overrides, f"trainer={name}"]) for name in names}
    for name, config in configs.items():
        if config.validation == 0:
            raise ValueError(
                "validation: expected a number > 0, got 0: trials are chosen on the validation split, and chosen on "
                "the test split their accuracy there would say nothing"
            )
        if config.threads is None:
            configs[name] = config.replace(threads=1)  # bits must not depend on how many runs share the machine
    refuse_unused(given, configs.values())
    spaces = {name: make_space(config, given) for name, config in configs.items()}
    for name, space in spaces.items():
        if not space:
            raise ValueError(f"there is nothing to tune for {name}: give --space KEY=LOW..HIGH")
    stem = Path(source).stem if Path(source).suffix else source
    return Protocol(stem, out or Path("runs") / f"tune-{stem}", configs, spaces, trials)


def claim(protocol: Protocol) -> None:
    """Makes the folder of the tuning. ValueError where it holds another, or something else."""
    from dotkd import config_sources
    from dotkd.atomic_file import write_atomically

    wanted: Any = config_sources.parse(config_sources.dump(_held(protocol)))  # tuples have become lists
    path = protocol.out / FILE
    if path.is_file():
        held: Any = config_sources.parse(path.read_text(encoding="utf-8"))
        changed = [
            f"  {key}: {held.get(key)!r} there, {wanted.get(key)!r} now"
            for key in {**held, **wanted}
            if held.get(key) != wanted.get(key)
        ]
        if changed:
            listed = "\n".join(changed)
            raise ValueError(
                f"{protocol.out} holds another tuning; choose another --out, or take its settings:\n{listed}"
            )
        return
    if protocol.out.exists() and any(entry.name != ".lock" for entry in protocol.out.iterdir()):
        raise ValueError(f"{protocol.out} is not empty and holds no tuning; choose another folder with --out")
    protocol.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, config_sources.dump(wanted))


def _held(protocol: Protocol) -> dict[str, Any]:
    """Everything that the trials depend on, flat, so that a difference can be named."""
    spaces = {f"space of {name}": _in_words(space) for name, space in protocol.spaces.items()}
    shared = {key: value for key, value in protocol.config.model_dump().items() if key != "trainer"}
    return {"trainers": ",".join(protocol.configs), "trials": protocol.trials, **spaces, **shared}


def _in_words(space: Space) -> str:
    return ", ".join(f"{key}={span}" for key, span in space.items())


def as_json(protocol: Protocol, samples: int) -> dict[str, Any]:
    """The protocol in words and numbers; samples: of the validation split."""
    return {
        "text": lines(protocol, samples),
        "trainers": list(protocol.configs),
        "trials": protocol.trials,
        "epochs": protocol.config.epochs,
        "epochs_budget": protocol.trials * protocol.config.epochs,
        "space": {name: {key: str(span) for key, span in space.items()} for name, space in protocol.spaces.items()},
        "split": "val",
        "split_samples": samples,
        "objective": "accuracy after the last epoch",
        "seed": protocol.config.seed,
        "sampler": {"name": "TPE", "random_trials": RANDOM_TRIALS},
        "pruner": {"name": "median", "first_epoch": protocol.first_pruning, "unpruned_trials": UNPRUNED_TRIALS},
    }


def lines(protocol: Protocol, samples: int) -> list[str]:
    """The protocol as a reader judges it, a sentence or two a line."""
    config, trials = protocol.config, protocol.trials
    searched: list[str] = []
    for name, space in protocol.spaces.items():
        searched.append(f"{name} searches {len(space)}: {_in_words(space)}")
    told = [
        f"budget: {trials} trials of at most {config.epochs} epochs for each trainer, {trials * config.epochs} epochs "
        "each; what pruning saves is not spent again; epochs are counted, not seconds: a step of a trainer with two "
        "streams takes two backward passes",
        "; ".join(searched),
    ]
    sizes = {len(space) for space in protocol.spaces.values()}
    if len(sizes) > 1:
        told[-1] += "; at the same budget the larger space holds more and is searched more thinly"
    if all("task_weight" not in space for space in protocol.spaces.values()) and config.method != "none":
        told.append("the task weight stays: with lr and distill_weight free, it would only repeat what they can do")
    if "sgd-matched" in protocol.spaces and {"lr", "distill_weight", "delta"} <= set(protocol.spaces["sgd-matched"]):
        told.append("the delta of sgd-matched only weighs the losses anew, as its lr and distill_weight do")
    told += [
        f"chosen by: accuracy on the validation split ({samples} samples, so one is {100 / samples:.2f} points) after "
        "the last epoch, the first of equals; the test split has no part in it",
        f"seed {config.seed} for all trials: one start, one order of samples; one teacher for all",
        f"trial 0 of each trainer is the configuration as given, those before trial {RANDOM_TRIALS} are random and "
        "equal between trainers in the keys they share, the others are chosen by TPE from the trials of that trainer",
        "pruned: a trial whose best epoch so far is below the median of its trainer's trials at that epoch, from epoch "
        f"{protocol.first_pruning} on, once {UNPRUNED_TRIALS} have ended unpruned; a pruned one is never chosen",
        "a trial that diverges counts as accuracy 0 and as one of the trials",
        "with --jobs 1 equal seeds give equal trials; with more, the order in which they end can matter",
    ]
    return told
