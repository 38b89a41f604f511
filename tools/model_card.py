"""Words the model card of an exported network: what it is, how good, and what it is not for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from data_sources.medmnist_table import medmnist_sets
from reporting.numbers import estimate_text
from run_folder.reader import Model
from serving.exported import ExportedModel
from tools.evaluate.measure import Evaluation
from tools.evaluate.tables import SCORES
from tools.onnx_file import Agreement


def model_card(
    run: Model,
    exported: ExportedModel,
    evaluations: tuple[Evaluation, Evaluation] | None,
    agreement: Agreement,
    images_are: str,
) -> str:
    """Markdown.

    Args:
        exported: what config.json says.
        evaluations: on the validation and the test split; None: the figures are those that the
            run noted.
        agreement: of ONNX and PyTorch.
        images_are: what they were compared on, in words.
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
    return f"""# {hp.architecture} for {_escaped(run.dataset)}

The network tells {classes} classes of {hp.image_size} x {hp.image_size} {colour} images apart. \
Active learning trained it with few labels. Version {exported.version}.

## Files

- `model.safetensors`, `config.json`: weights and settings of `SplitNetwork` in `resnet_custom.py`.
- `model.onnx`: `images`, uint8 [N, {run.channels}, {hp.image_size}, {hp.image_size}], 0 to \
255, to `logits` and `probabilities`, float32 [N, {classes}], and `embeddings`. Normalisation is \
inside. {agreement} ({images_are}).
- `references.safetensors`: embeddings of the labelled images, for the outlier flag; absent where \
the data set was not at hand.
- `Dockerfile`, `service/`: the prediction service. `docker build -t model .` and \
`docker run --rm -p 127.0.0.1:8080:8080 model` serve the folder.

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

## Calibration and outliers

{_calibration(exported)}

## Intended use

Research on active learning, and as a baseline on this data set.

## Limits

- It is no medical device and has not been examined for clinical use: no decision about a patient \
may rest on it.
- Figures hold for images made and prepared like those of the data set. Other scanners, stains, \
magnifications and patients were not tested.
- Every image gets one of the classes, and a high probability, whatever it shows. The outlier flag \
is the only sign that an image shows none of them; it misses some.
- Images of another size are resized whole, which changes their proportions if they are not square.
- One training run with one seed: another one comes out differently, beyond the intervals above.
"""


def _calibration(exported: ExportedModel) -> str:
    scaling = (
        f"Divide the logits by the temperature, {exported.temperature:.3f}, before the softmax: "
        "the probabilities are then calibrated on the validation split. "
    )
    rule = exported.outliers
    if rule is None:
        return (
            f"{scaling}There is no outlier flag, because the data set was not at hand when this "
            "was written."
        )
    return (
        f"{scaling}An image is an outlier "
        f"where its mean Euclidean distance to the {rule.neighbours} nearest of "
        f"{rule.references} labelled embeddings is above {rule.threshold:.4f}. Of "
        f"{rule.validation_images} validation images, {100 - rule.percentile:.0f} % are."
    )


def _measured(run: Model, val: Evaluation, test: Evaluation) -> str:
    """Both splits as a whole, with intervals."""
    measures = "\n".join(
        f"| {title} | {estimate_text(val.scores[name])} | {estimate_text(test.scores[name])} |"
        for name, title in SCORES.items()
    )
    precision, recall = (
        map(estimate_text, test.class_scores[one]) for one in ("precision", "recall")
    )
    return f"""With 95 % intervals over images. The checkpoint (round {run.round}, \
counted from 0; validation loss {run.val_loss:.4f}) and the temperature ({val.temperature:.3f}) \
were chosen on the validation split; on the test split nothing was chosen.

| measure | validation | test |
|---|---|---|
{measures}

{_class_table(run, precision, recall)}"""


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
    return f"""The run noted these figures on {images} images of each split, without intervals. \
The checkpoint (round {run.round}, counted from 0) was chosen on the validation split; on the test \
split nothing was chosen.

| measure | validation | test |
|---|---|---|
{measures}

{_class_table(run, precision, recall)}"""


def _class_table(run: Model, precision: Iterable[str], recall: Iterable[str]) -> str:
    counts = run.pool.labels[run.pool.labelled].bincount(minlength=len(run.class_names)).tolist()
    rows = zip(map(_escaped, run.class_names), counts, precision, recall, strict=True)
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
        return f"{_escaped(run.hp.dataset)}, a data set of the user's own."
    info = medmnist_sets()[run.hp.dataset]
    return f"{name} of MedMNIST ({info['license']}). {info['description']}"


def _escaped(name: str) -> str:
    """A name from the data as Markdown shows it literally, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|$~-])", r"\\\1", " ".join(name.split()))
