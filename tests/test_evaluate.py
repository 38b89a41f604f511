"""The evaluation report: its measures against medmnist, scikit-learn and hand-made cases; the
command line on a small run."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medmnist.evaluator import Evaluator, getACC, getAUC
from PIL import Image
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from data_sources.sources import FileSources
from errors import UserError
from reporting import measures
from reporting.grad_cam import grad_cam
from reporting.intervals import Estimate
from resnet_custom import ARCHITECTURES, SplitNetwork
from run_folder.reader import Run, open_run
from tests.conftest import SHARED_DATA
from tools import readme_figures
from tools.evaluate import __main__ as evaluate
from tools.evaluate import report as evaluation_report
from tools.evaluate.measure import evaluate_split, group_accuracies
from tools.evaluate.measure import report as evaluation_numbers
from tools.evaluate.tables import mistakes_csv, text_table
from tools.output_folder import write_output
from training.calibration import fit_temperature


def made_up(classes: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities float64 [count, classes], ties among them, and labels of every class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[:classes] = torch.arange(classes)
    logits = torch.randn(count, classes, generator=generator).round(decimals=1).double()
    return (logits + torch.nn.functional.one_hot(labels, classes)).softmax(1), labels


def estimated(
    probabilities: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor | None = None
) -> tuple[dict[str, Estimate], dict[str, list[Estimate]]]:
    generator = torch.Generator().manual_seed(0)
    return measures.estimates(probabilities, probabilities, labels, groups, 300, generator)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("classes", "task"), [(2, "binary-class"), (9, "multi-class")])
def test_measures_equal_medmnist_and_sklearn(classes: int, task: str, seed: int) -> None:
    probabilities, labels = made_up(classes, 300, seed)
    scores, class_scores = estimated(probabilities, labels)
    truth, predictions = labels.numpy(), probabilities.numpy()
    predicted = predictions.argmax(1)
    assert scores["auc"].value == pytest.approx(getAUC(truth[:, None], predictions, task))
    assert scores["accuracy"].value == pytest.approx(getACC(truth[:, None], predictions, task))
    assert scores["balanced_accuracy"].value == pytest.approx(
        balanced_accuracy_score(truth, predicted)
    )
    assert scores["brier"].value == pytest.approx(
        ((predictions - np.eye(classes)[truth]) ** 2).sum(1).mean()
    )
    expected = precision_recall_fscore_support(truth, predicted, zero_division=0)
    means = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    counts = measures.confusion_counts(probabilities.argmax(1), labels, classes)
    np.testing.assert_array_equal(counts, confusion_matrix(truth, predicted))
    of_counts = measures.class_measures(counts)
    for place, name in enumerate(("precision", "recall", "f1")):
        np.testing.assert_allclose([one.value for one in class_scores[name]], expected[place])
        np.testing.assert_allclose(of_counts[name], expected[place])
        if name != "recall":
            assert scores[f"macro_{name}"].value == pytest.approx(means[place])
    areas = [roc_auc_score(truth == c, predictions[:, c]) for c in range(classes)]
    np.testing.assert_allclose([one.value for one in class_scores["class_auc"]], areas)
    np.testing.assert_allclose(measures.class_areas(probabilities, labels), areas)


@pytest.mark.skipif(
    not (SHARED_DATA / "breastmnist.npz").exists(), reason="BreastMNIST is not here"
)
def test_measures_equal_medmnists_evaluator_on_an_official_file() -> None:
    evaluator = Evaluator("breastmnist", "test", root=str(SHARED_DATA))
    labels = torch.from_numpy(evaluator.labels).long().squeeze(1)
    logits = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0)).double()
    probabilities = logits.softmax(1)
    area, accuracy = evaluator.evaluate(probabilities.numpy())
    scores, _ = estimated(probabilities, labels)
    assert scores["auc"].value == pytest.approx(area)
    assert scores["accuracy"].value == pytest.approx(accuracy)


def test_known_brier() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.8, 0.2]]).double()
    scores, _ = estimated(probabilities, torch.tensor([0, 0, 1, 0]))
    assert scores["brier"].value == pytest.approx((0 + 2 + 0.5 + 0.08) / 4)


def test_known_calibration_error() -> None:
    # Ten images, 0.9 sure, six of them right; ten, 0.6 sure, six of them right.
    probabilities = torch.tensor([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10).double()
    labels = torch.tensor(([0] * 6 + [1] * 4) * 2)
    assert estimated(probabilities, labels)[0]["ece"].value == pytest.approx(0.5 * 0.3)
    confidence = torch.tensor([0.0, 1 / 15, 1 / 15 + 1e-9, 1.0], dtype=torch.float64)
    assert measures.confidence_bins(confidence).tolist() == [0, 0, 1, 14]


def test_absent_and_unpredicted_classes() -> None:
    # Class 2 has no image; class 1 has one and is never predicted.
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.1, 0.7]]).double()
    scores, class_scores = estimated(probabilities, torch.tensor([0, 1, 0]))
    assert [one.value for one in class_scores["recall"][:2]] == [0.5, 0.0]
    assert [one.value for one in class_scores["precision"][:2]] == [0.5, 0.0]
    for name in measures.PER_CLASS:
        assert math.isnan(class_scores[name][2].value)
    assert scores["balanced_accuracy"].value == 0.25


def test_temperature_undoes_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator).double()
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.03)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "resnet50"])
def test_grad_cam_is_the_class_activation_map(architecture: str) -> None:
    """With mean pooling and a linear head, Grad-CAM equals CAM (Selvaraju et al., section 3.1)."""
    generator = torch.Generator().manual_seed(0)
    network = SplitNetwork(architecture, 4, 3, generator).eval()
    images = torch.randn(2, 3, 16, 16, generator=generator)
    classes = torch.tensor([1, 3])
    maps = grad_cam(network, images, classes)
    layers = list(network.backbone.children())
    pooling = next(
        i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.AdaptiveAvgPool2d)
    )
    with torch.no_grad():
        stage = torch.nn.Sequential(*layers[:pooling])(images)
        weighted = torch.einsum("bkhw,bk->bhw", stage, network.classifier.weight[classes]).relu()
    expected = torch.nn.functional.interpolate(weighted[:, None], (16, 16), mode="bilinear")[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=1e-4)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.fixture(autouse=True, scope="module")
def small_map() -> Iterator[None]:
    """t-SNE of a thousand points takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_report, "MAP_POINTS", 30)
        yield


@pytest.fixture(scope="module")
def report(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report on the small run's test split was written."""
    folder = tmp_path_factory.mktemp("report")
    arguments = [str(small_run), "--split", "test", "--output-dir", str(folder)]
    assert evaluate.main(arguments) == 0
    return folder


class TestCommandLine:
    def test_numbers_are_those_of_the_run(self, report: Path, small_run: Path) -> None:
        numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
        run = open_run(small_run)
        row = run.metrics[run.round]
        assert numbers["images"] == len(run.splits.test)
        assert numbers["labelled_images"] == row["labeled_samples"]
        assert numbers["scores"]["accuracy"]["value"] == pytest.approx(row["test_accuracy"])
        assert numbers["scores"]["auc"]["value"] == pytest.approx(row["test_auc"], abs=1e-6)
        assert np.sum(numbers["confusion_matrix"]) == numbers["images"]
        for score in numbers["scores"].values():
            assert score["low"] <= score["high"]

    def test_temperature_does_not_see_the_test_split(self, report: Path, small_run: Path) -> None:
        run = open_run(small_run)
        logits = run.inference.logits(run.inference.embed(run.splits.val.images, "val"))
        numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
        assert numbers["temperature"] == pytest.approx(
            fit_temperature(logits, run.splits.val.labels)
        )

    def test_page_needs_nothing_else(self, report: Path) -> None:
        text = (report / "report.html").read_text(encoding="utf-8")
        pictures: list[str] = []

        class Reader(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                assert tag not in ("script", "link", "iframe", "object")
                values = dict(attrs)
                if tag == "img":
                    assert values["alt"]
                    pictures.append(values["src"] or "")

        Reader().feed(text)
        assert "http" not in text
        assert "url(" not in text
        assert "@media print" in text
        assert len(pictures) > 20
        for source in pictures:
            kind, _, data = source.partition(",")
            assert kind == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
                image.load()
                assert min(image.size) >= 8

    def test_last_checkpoint_and_default_place(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copy = tmp_path / "run"
        shutil.copytree(small_run, copy)
        assert evaluate.main([str(copy), "--checkpoint", "last"]) == 0
        last = json.loads((copy / "evaluation_val_last" / "report.json").read_text())
        assert last["checkpoint"]["round"] == 2
        for name in ("2", last["checkpoint"]["uuid"][:8]):
            assert open_run(copy, name).uuid == last["checkpoint"]["uuid"]
        assert re.search(r"^accuracy +0\.\d{3} \[", capsys.readouterr().out, re.MULTILINE)


class TestGroups:
    """Images of one patient count together."""

    @pytest.fixture
    def run(self, small_run: Path) -> Run:
        """The small run, as if its test images were files of 30 patients."""
        run = open_run(small_run)
        test = run.splits.test
        paths = tuple(f"p{index % 30}/{index}.png" for index in range(len(test)))
        sources = FileSources(Path("/data"), paths)
        return dataclasses.replace(
            run,
            splits=dataclasses.replace(run.splits, test=dataclasses.replace(test, sources=sources)),
        )

    def test_every_group_has_its_accuracy(self, run: Run) -> None:
        evaluation = evaluate_split(run, "test", "^p[0-9]+")
        rows = group_accuracies(evaluation)
        assert {name for name, _, _ in rows} == {f"p{number}" for number in range(30)}
        assert sum(images for _, images, _ in rows) == len(run.splits.test)
        values = [accuracy.value for _, _, accuracy in rows]
        assert values == sorted(values)
        right = evaluation.probabilities.argmax(1) == run.splits.test.labels
        assert dict((name, one.value) for name, _, one in rows)["p7"] == pytest.approx(
            right[7::30].double().mean().item()
        )
        numbers = evaluation_numbers(run, evaluation)
        assert len(numbers["groups"]) == 30
        assert "p7" in text_table(run, evaluation) + evaluation_report.html_report(run, evaluation)
        assert "/data/" not in mistakes_csv(run, evaluation)

    def test_images_of_an_array_have_no_groups(self, small_run: Path) -> None:
        with pytest.raises(UserError, match="--group-by"):
            evaluate_split(open_run(small_run), "test", "^p[0-9]+")


def test_mistakes_are_listed_with_their_sources(report: Path, small_run: Path) -> None:
    run = open_run(small_run)
    with (report / "mistakes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
    wrong = numbers["images"] - np.trace(numbers["confusion_matrix"])
    assert len(rows) == wrong > 0
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)
    for row in rows:
        assert row["image"] == run.splits.test.sources[int(row["index"])]
        assert row["class"] == run.class_names[int(run.splits.test.labels[int(row["index"])])]
        assert row["class"] != row["predicted"]


def test_a_diverged_network_is_named(small_run: Path) -> None:
    run = open_run(small_run)
    with torch.no_grad():
        run.inference.network.classifier.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="no numbers"):
        evaluate_split(run, "val")


def test_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UserError, match=r"--output-dir .*report\.json"):
        write_output(tmp_path, {"report.json": ""})


def test_unlabelled_images_are_left_out(small_run: Path) -> None:
    run = open_run(small_run)
    labels = run.splits.test.labels.clone()
    labels[::2] = -1
    test = dataclasses.replace(run.splits.test, labels=labels)
    half = dataclasses.replace(run, splits=dataclasses.replace(run.splits, test=test))
    evaluation = evaluate_split(half, "test")
    assert len(evaluation.store) == len(labels) // 2
    assert evaluation.store.sources[0] == run.splits.test.sources[1]
    nothing = dataclasses.replace(test, labels=torch.full_like(labels, -1))
    none = dataclasses.replace(run, splits=dataclasses.replace(run.splits, test=nothing))
    with pytest.raises(UserError, match="label some"):
        evaluate_split(none, "test")


def test_figures_of_a_run(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme_figures, "MAP_POINTS", 20)
    found = readme_figures.run_figures(open_run(small_run))
    assert set(found) == {"learning_curve", "map", "mistakes"}
    for png in found.values():
        with Image.open(io.BytesIO(png)) as image:
            assert image.convert("L").getextrema()[0] < 100


class TestRefusals:
    @pytest.fixture
    def copy(self, small_run: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(small_run, tmp_path / "run"))

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        assert evaluate.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    def change(self, copy: Path, **changes: Any) -> None:
        """Change what the checkpoints say of themselves, as if they had been written so."""
        for file in copy.glob("checkpoints/*/run.json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            for name, value in changes.items():
                content[name] = {**content[name], **value} if isinstance(value, dict) else value
            file.write_text(json.dumps(content), encoding="utf-8")
        entries = json.loads((copy / "checkpoints.json").read_text())
        (copy / "checkpoints.json").write_text(
            json.dumps([{**entry, "blake2b": {}} for entry in entries])
        )

    def test_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "not a run or checkpoint" in self.refused(capsys, str(tmp_path))

    def test_no_checkpoint(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (copy / "checkpoints.json").unlink()
        assert "no checkpoint" in self.refused(capsys, str(copy))

    def test_checkpoint_that_was_not_kept(
        self, copy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        entries = json.loads((copy / "checkpoints.json").read_text())
        entries[0]["uuid"] = "7" + entries[0]["uuid"][1:]
        (copy / "checkpoints.json").write_text(json.dumps(entries))
        said = self.refused(capsys, str(copy), "--checkpoint", "7")
        assert "0 checkpoints of round 7" in said
        assert "2 (" in said

    def test_a_round_goes_before_an_id(self, copy: Path) -> None:
        entries = json.loads((copy / "checkpoints.json").read_text())
        last = max(entries, key=lambda one: one["round"])
        other = next(one for one in entries if one is not last)
        renamed = "2222" + other["uuid"][4:]
        (copy / "checkpoints" / other["uuid"]).rename(copy / "checkpoints" / renamed)
        other["uuid"] = renamed
        (copy / "checkpoints.json").write_text(json.dumps(entries))
        assert open_run(copy, "2").uuid == last["uuid"]
        assert open_run(copy, "2222").uuid == renamed

    def test_empty_checkpoint_list(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (copy / "checkpoints.json").write_text("[]")
        assert "no checkpoint" in self.refused(capsys, str(copy), "--checkpoint", "last")

    def test_damaged_checkpoint(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for file in copy.glob("checkpoints/*/weights.safetensors"):
            file.write_bytes(file.read_bytes()[:1000])
        assert "weights.safetensors" in self.refused(capsys, str(copy))

    def test_other_data(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.change(copy, fingerprint="0" * 64)
        assert "fingerprint" in self.refused(capsys, str(copy))

    def test_settings_of_another_version(
        self, copy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.change(copy, settings={"rouns": 3})
        assert "rouns" in self.refused(capsys, str(copy))

    def test_weights_of_another_network(
        self, copy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.change(copy, settings={"architecture": "resnet18"})
        assert "another checkpoint" in self.refused(capsys, str(copy))

    def test_output_that_is_a_file(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        place = copy / "config.yaml"
        assert "--output-dir" in self.refused(capsys, str(copy), "--output-dir", str(place))
