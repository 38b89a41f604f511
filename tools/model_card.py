"""Words the model card of an exported network: what it is, how good, and what it is not for."""

from __future__ import annotations

from reporting.measures import Estimate
from tools.evaluation import Evaluation
from tools.evaluation_report import SCORES
from tools.run_reader import Run


def model_card(run: Run, val: Evaluation, test: Evaluation, onnx_difference: float) -> str:
    """Markdown. `onnx_difference`: the largest difference of a probability that was found."""
    hp, splits = run.hp, run.splits
    labelled, pool = len(run.pool.labelled), len(splits.train)
    counts = run.pool.labels[run.pool.labelled].bincount(minlength=splits.num_classes).tolist()
    colour = {1: "grey", 3: "colour"}[splits.channels]
    classes = "\n".join(
        f"| {c} | {name} | {counts[c]} | {_text(test.class_scores['precision'][c])} "
        f"| {_text(test.class_scores['recall'][c])} |"
        for c, name in enumerate(splits.class_names)
    )
    measures = "\n".join(
        f"| {title} | {_text(val.scores[name])} | {_text(test.scores[name])} |"
        for name, title in SCORES.items()
    )
    return f"""# {hp.architecture} for {splits.name}

Tells {splits.num_classes} classes of {hp.image_size} x {hp.image_size} {colour} images apart. It \
was trained by active learning, with few labels.

## Files

- `model.safetensors`, `config.json`: weights and settings of `SplitNetwork` in `resnet_custom.py`.
- `model.onnx`: `images`, uint8 [N, {splits.channels}, {hp.image_size}, {hp.image_size}], 0 to \
255, to `logits` and `probabilities`, float32 [N, {splits.num_classes}]. Normalisation is inside. \
Its probabilities differ from PyTorch's by at most {onnx_difference:.1e} on real images.

## Data and labels

{_data(run)}
{labelled} of its {pool} training images were labelled ({labelled / pool:.1%}), in \
{run.round + 1} rounds: the first drawn at random, the others chosen by `{hp.query_strategy}`. \
{_noise(run)}\
{len(val.store)} validation and {len(test.store)} test images were labelled besides. \
Fingerprint of the data: `{splits.fingerprint()}`. Seed {run.seed}.

## Figures

With 95 % bootstrap intervals over images. The checkpoint (round {run.round}, counted from 0; \
validation loss {run.val_loss:.4f}) and the temperature ({val.temperature:.3f}) were chosen on \
the validation split; on the test split nothing was chosen.

| measure | validation | test |
|---|---|---|
{measures}

| | class | labels spent | precision, test | recall, test |
|---|---|---|---|---|
{classes}

Divide the logits by `temperature` in `config.json` before the softmax for scaled probabilities.

## Intended use

Research on active learning, and as a baseline on this data set.

## Limits

- It is no medical device and has not been examined for clinical use: no decision about a patient \
may rest on it.
- Figures hold for images made and prepared like those of the data set. Other scanners, stains, \
magnifications and patients were not tested.
- Every image is given one of the classes; the network cannot say that an image shows none of them.
- Images of another size are resized whole, which changes their proportions if they are not square.
- One training run with one seed: another one comes out differently, beyond the intervals above.
"""


def _noise(run: Run) -> str:
    """A sentence about labels that were made wrong on purpose, where there are any."""
    if not run.hp.label_noise:
        return ""
    labelled = run.pool.labelled
    wrong = int((run.pool.labels[labelled] != run.splits.train.labels[labelled]).sum())
    return (
        f"{wrong} of these labels are wrong: a fallible annotator was simulated "
        f"(`label_noise: {run.hp.label_noise}`). "
    )


def _data(run: Run) -> str:
    """A few words about the data set, with its licence where that is known."""
    name = run.splits.name
    if run.hp.dataset == "digits":
        return "The handwritten digits that come with scikit-learn, enlarged."
    if ":" in run.hp.dataset:
        return f"`{run.hp.dataset}`, a data set of the user's own."
    from medmnist import INFO  # as in data_sources: it is slow to load

    info = INFO[run.hp.dataset]
    return f"{name} of MedMNIST ({info['license']}). {info['description']}"


def _text(estimate: Estimate) -> str:
    if estimate.value != estimate.value:
        return "not defined"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
