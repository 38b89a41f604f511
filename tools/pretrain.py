"""Learns a backbone from all training images without their labels, for later runs to start from.

    python -m tools.pretrain --config configs/bloodmnist.yaml --steps 2000 \\
        --output blood.safetensors
    python model_def.py --config configs/bloodmnist.yaml \\
        --set hyperparameters.pretrained_backbone=blood.safetensors

Everything but the number of steps comes from the configuration. The state is kept beside
the output now and then. After Ctrl-C or a kill the same command continues from there. The backbone
is also kept in the data folder, from which equal trials with `self_supervised_steps` take it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, exit_status

SAVE_EVERY = 200  # steps, counted when `reporting_period` steps are over


def pretrain(arguments: argparse.Namespace) -> None:
    """Learn the backbone and write it."""
    import torch

    from active_learning import ActiveLearner
    from reporting.files import write_atomically
    from reporting.run_progress import progress_bar
    from training.backbone_cache import backbone_folder, train_once
    from training.backbone_file import backbone_bytes
    from training.experiment_config import load, override, sample
    from training.hyperparameters import Hyperparameters
    from training.loading import load_data
    from training.ranks import ALONE

    output: Path = arguments.output
    if output.exists():
        raise UserError(f"--output {output}: exists; name a new file")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: no folder {output.parent}; make it first")
    config = override(load(arguments.config), arguments.set)
    seed = int(config["reproducibility"]["experiment_seed"])
    values, _ = sample(config["hyperparameters"], seed)
    if arguments.steps is not None:
        values["self_supervised_steps"] = arguments.steps
    if arguments.data_dir is not None:
        values["data_dir"] = str(arguments.data_dir)
    hp = Hyperparameters.from_mapping(values)
    splits = load_data(hp)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = ActiveLearner(hp, splits.train.to(device), seed)
    work = learner.pretraining
    if work is None:
        raise UserError("--steps: 0 of them make no backbone; give some, such as --steps 2000")
    partial = output.with_name(f".{output.name}.part")
    if partial.exists():
        work.load(partial.read_bytes())
        print(f"continuing from step {work.step}, which {partial} holds")
    saved = work.step

    def report(metrics: dict[str, float]) -> bool:
        nonlocal saved
        print(f"step {work.step} of {hp.self_supervised_steps}, loss {metrics['loss']:.4f}")
        if work.step - saved >= SAVE_EVERY:
            write_atomically(partial, work.save())
            saved = work.step
        return True

    train_once(work, backbone_folder(hp), ALONE, report, lambda: True, progress_bar(ALONE))
    write_atomically(output, backbone_bytes(work.backbone, hp, work.last_loss))
    partial.unlink(missing_ok=True)
    print(f"written: {output}; start from it with hyperparameters.pretrained_backbone")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument("--data-dir", type=Path, help="in place of hyperparameters.data_dir")
    parser.add_argument("--steps", type=int, help="in place of self_supervised_steps")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: pretrain(arguments))


if __name__ == "__main__":
    sys.exit(main())
