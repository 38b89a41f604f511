"""Names of the files in a run folder and in a checkpoint, and the version of their format.

A run folder, and a checkpoint wherever it was written, both hold

    run.json      what the run is about; see description.py
    metrics.csv   one row per round
    queries.csv   one row per image that the run asked for

A checkpoint adds

    weights.safetensors    the network's weights and BatchNorm statistics, float32
    state.safetensors      the pool's state, and a pre-trained backbone where later rounds need it
    optimizer.safetensors  the optimizer's state; only where the run continues from here

and a run folder adds

    config.yaml            the experiment configuration, searched values drawn
    learning_curve.png     accuracy and AUC against labels
    queried_round_*.png    what each round asked for
    self_supervision.csv   step, loss and learning rate before the first round, where asked for
    backbone.safetensors   the pre-trained backbone; self_supervision.pth while it is being trained
    tensorboard/           event files, with each round's pictures unless switched off
    checkpoints/ID/        the last two checkpoints and the best one; checkpoints.json lists them
    .lock                  held by the process that works on the run
"""

from __future__ import annotations

FORMAT = 2

DESCRIPTION = "run.json"
METRICS = "metrics.csv"
QUERIES = "queries.csv"

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
OPTIMIZER = "optimizer.safetensors"

CONFIG = "config.yaml"
LEARNING_CURVE = "learning_curve.png"
SELF_SUPERVISION_TABLE = "self_supervision.csv"
UNFINISHED_BACKBONE = "self_supervision.pth"
BACKBONE = "backbone.safetensors"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
CHECKPOINT_LIST = "checkpoints.json"
LOCK = ".lock"
