"""One run on a Ray cluster: the Trainer of `dotkd train`, in each worker of Ray Train.

    python examples/cluster/ray_train.py mnist1d trainer=dot --workers 4 --out /shared/runs/four

Needs `pip install 'dotkd[cluster]'`. The folder lies where all workers see it; a run of the same configuration that is
in it already goes on from its newest checkpoint, as it does when Ray starts the workers again after a failure.
"""

import argparse
import json
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from dotkd import Config, Trainer


def work(given: dict) -> None:
    # Ray has made the process group: the workers share each batch.
    Trainer(Config(**given["config"]), given["out"]).fit()


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe's name or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--gpu", action="store_true", help="a GPU to each worker")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    given = parser.parse_intermixed_args(words)
    config = Config.from_sources(given.recipe, given.overrides)
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": config.model_dump(), "out": str(given.out.resolve())},
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=given.gpu),
        run_config=RunConfig(
            name="dotkd", storage_path=str(given.out.resolve().parent), failure_config=FailureConfig(max_failures=3)
        ),
    )
    trainer.fit()
    print(json.loads((given.out / "summary.json").read_text())["test_accuracy"])


if __name__ == "__main__":
    main()
