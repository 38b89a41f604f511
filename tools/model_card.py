"""Words the model card of an exported network: what it is, how good, and what it is not for."""

from __future__ import annotations

from collections.abc import Iterable

from data_sources.medmnist_table import medmnist_sets
from reporting.measures import Estimate
from run_folder.reader import Model
from tools.evaluate.measure import Evaluation
from tools.evaluate.report import SCORES


def model_card(
    run: Model, evaluations: tuple[Evaluation, Evaluation] | None, onnx_difference: float
) -> str:
    """Markdown.

    Args:
        evaluations: on the validation and the test split; None where the data set is not at hand,
            and the figures are those that the run noted.
        onnx_difference: the largest difference of a probability that was found.
    """
    hp, classes = run.hp, len(run.class_names)
    labelled, pool = len(run.pool.labelled), len(run.pool.labels)
    colour = {1: "grey", 3: "colour"}[run.channels]
    others = ""
    if evaluations is not None:
        val, test = evaluations
        others = (
            f"{len(val.store)} validation and {len(test.store)} test images were labelled besides. "
        )
    return f"""# {hp.architecture} for {run.dataset}

Tells {classes} classes of {hp.image_size} x {hp.image_size} {colour} images apart. It \
was trained by active learning, with few labels.

## Files

- `model.safetensors`, `config.json`: weights and settings of `SplitNetwork` in `resnet_custom.py`.
- `model.onnx`: `images`, uint8 [N, {run.channels}, {hp.image_size}, {hp.image_size}], 0 to \
255, to `logits` and `probabilities`, float32 [N, {classes}]. Normalisation is inside. \
Its probabilities differ from PyTorch's by at most {onnx_difference:.1e} on real images.

## Data and labels

{_data(run)}
{labelled} of its {pool} training images were labelled ({labelled / pool:.1%}), in \
{run.round + 1} rounds: the first chosen by `{hp.initial_pool}`, the others by \
`{hp.query_strategy}`. \
{_noise(run)}\
{others}\
Fingerprint of the data: `{run.fingerprint}`. Seed {run.seed}.

## Figures

{_noted(run) if evaluations is None else _measured(run, *evaluations)}

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


def _measured(run: Model, val: Evaluation, test: Evaluation) -> str:
    """Both splits as a whole, with intervals."""
    measures = "\n".join(
        f"| {title} | {_text(val.scores[name])} | {_text(test.scores[name])} |"
        for name, title in SCORES.items()
    )
    precision, recall = (map(_text, test.class_scores[one]) for one in ("precision", "recall"))
    return f"""With 95 % bootstrap intervals over images. The checkpoint (round {run.round}, \
counted from 0; validation loss {run.val_loss:.4f}) and the temperature ({val.temperature:.3f}) \
were chosen on the validation split; on the test split nothing was chosen.

| measure | validation | test |
|---|---|---|
{measures}

{_class_table(run, precision, recall)}

Divide the logits by `temperature` in `config.json` before the softmax for scaled probabilities."""


def _noted(run: Model) -> str:
    """What metrics.csv says of the checkpoint's round."""
    row = next(row for row in run.metrics if row["round"] == run.round)

    def noted(name: str) -> str:
        return f"{row[name]:.3f}" if name in row else "not noted"

    measures = "\n".join(
        f"| {title} | {noted(f'val_{name}')} | {noted(f'test_{name}')} |"
        for name, title in (("accuracy", "accuracy"), ("auc", SCORES["auc"]), ("loss", "loss"))
    )
    precision, recall = (
        [noted(f"test_{one}_{name}") for name in run.class_names] for one in ("precision", "recall")
    )
    images = f"{run.hp.evaluation_size or 'all'}"
    return f"""As the run noted them, on {images} images of each split and without intervals: the \
data set was not at hand when this was written. The checkpoint (round {run.round}, counted from 0) \
was chosen on the validation split; on the test split nothing was chosen. No temperature was \
fitted.

| measure | validation | test |
|---|---|---|
{measures}

{_class_table(run, precision, recall)}"""


def _class_table(run: Model, precision: Iterable[str], recall: Iterable[str]) -> str:
    counts = run.pool.labels[run.pool.labelled].bincount(minlength=len(run.class_names)).tolist()
    rows = zip(run.class_names, counts, precision, recall, strict=True)
    lines = [f"| {c} | {' | '.join(map(str, row))} |" for c, row in enumerate(rows)]
    header = "| | class | labels spent | precision, test | recall, test |\n|---|---|---|---|---|"
    return "\n".join([header, *lines])


def _noise(run: Model) -> str:
    """A sentence about labels that were made wrong on purpose, where there are any."""
    if not run.hp.label_noise:
        return ""
    given = [row for row in run.queries if int(row["round"]) <= run.round]
    wrong = sum(row["label"] != row["true_label"] for row in given)
    return (
        f"{wrong} of these labels are wrong: a fallible annotator was simulated "
        f"(`label_noise: {run.hp.label_noise}`). "
    )


def _data(run: Model) -> str:
    """A few words about the data set, with its licence where that is known."""
    name = run.dataset
    if run.hp.dataset == "digits":
        return "The handwritten digits that come with scikit-learn, enlarged."
    if ":" in run.hp.dataset:
        return f"`{run.hp.dataset}`, a data set of the user's own."
    info = medmnist_sets()[run.hp.dataset]
    return f"{name} of MedMNIST ({info['license']}). {info['description']}"


def _text(estimate: Estimate) -> str:
    if estimate.value != estimate.value:
        return "not defined"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
