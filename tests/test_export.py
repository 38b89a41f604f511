"""`python -m tools.export` on a small run: every file is read back and used on real images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from active_learning import ActiveLearner
from data import Splits
from errors import UserError
from resnet_custom import SplitNetwork
from run_folder import reader
from run_folder.description import Goal, RunDescription
from run_folder.reader import Run, open_model, open_run
from run_folder.tables import MetricsTable, queries_csv
from run_folder.writer import RunFolder
from serving.engine import load_engine
from serving.exported import read_exported, read_references
from serving.outliers import Neighbours
from tests.conftest import ask
from tools import export
from tools.container_files import PACKAGES
from tools.evaluate.measure import evaluate_split
from tools.exporting import Source, content_without_data, write_folder
from tools.model_card import model_card
from tools.onnx_file import Agreement, PixelsToProbabilities, compare_onnx, write_onnx
from training.inference import Inference


@pytest.fixture(scope="module")
def run(small_run: Path) -> Run:
    return open_run(small_run)


def test_nothing_else_is_left(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "Dockerfile",
        "README.md",
        "config.json",
        "model.onnx",
        "model.safetensors",
        "references.safetensors",
        "service",
    }
    assert [path.name for path in exported.parent.iterdir()] == ["model"]


def kept_checkpoints(run: Path) -> dict[int, Path]:
    """The folders of the checkpoints that a run has kept, by round."""
    entries = json.loads((run / "checkpoints.json").read_text())
    return {one["round"]: run / "checkpoints" / one["uuid"] for one in entries}


def test_the_round_that_is_asked_for_is_exported(small_run: Path, tmp_path: Path) -> None:
    for round_, checkpoint in kept_checkpoints(small_run).items():
        for source in (small_run, checkpoint):
            folder = tmp_path / f"{source.name}_{round_}"
            arguments = [str(source), "--round", str(round_), "--output", str(folder)]
            assert export.main(arguments) == 0
            training = read_exported(folder).training
            assert (training.round, training.checkpoint) == (round_, checkpoint.name)


def test_a_round_that_was_not_kept_is_refused_with_those_that_were(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a checkpoint that was downloaded alone, under whatever name."""
    kept = kept_checkpoints(small_run)
    last, checkpoint = max(kept.items())
    downloaded = shutil.copytree(checkpoint, tmp_path / "latest")
    for source, word, expected in (
        (small_run, "7", ["0 checkpoints of round 7", *(f"round {n} (" for n in kept)]),
        (small_run, "best of all", ["0 checkpoints called best of all", "best or last"]),
        (downloaded, "7", [f"is the checkpoint of round {last}, not one of round 7"]),
    ):
        output = str(tmp_path / "out")
        assert export.main([str(source), "--round", word, "--output", output]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert all(part in message for part in expected), message
    for word in ("best", "last", str(last)):
        assert reader.open_model(downloaded, word).round == last
    (downloaded / "run.json").write_text(
        (downloaded / "run.json").read_text().replace('"round"', '"x"')
    )
    with pytest.raises(UserError, match="damaged"):
        reader.open_model(downloaded, "7")


def test_outlier_rule_flags_a_twentieth_of_validation(exported: Path, run: Run) -> None:
    model = read_exported(exported)
    references = read_references(exported, model)
    assert model.outliers is not None
    assert references is not None
    assert len(references) == len(run.pool.labelled) == model.training.labelled_images
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    images = {"images": run.splits.val.images.numpy()}
    (embeddings,) = session.run(["embeddings"], images)
    flagged = Neighbours(references).distances(embeddings) > model.outliers.threshold
    assert flagged.mean() == pytest.approx(0.05, abs=2 / len(flagged))


def test_temperature_is_that_of_the_evaluation(exported: Path, run: Run) -> None:
    temperature = read_exported(exported).temperature
    assert temperature == pytest.approx(evaluate_split(run, "val").temperature, rel=1e-3)


def test_container_has_all_of_the_service(exported: Path) -> None:
    requirements = (exported / "service" / "requirements.txt").read_text(encoding="utf-8")
    named = {line.split(">")[0] for line in requirements.splitlines()}
    assert named == set(PACKAGES)
    dockerfile = (exported / "Dockerfile").read_text(encoding="utf-8")
    for source in ("service/requirements.txt", "README.md"):
        assert (exported / source).is_file()
        assert source in dockerfile


def test_safetensors_and_config_rebuild_the_network(exported: Path, run: Run) -> None:
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    network = SplitNetwork(
        config["architecture"], len(config["classes"]), config["channels"], torch.Generator()
    )
    network.load_state_dict(load_file(exported / "model.safetensors"))
    images = run.splits.test.images
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        logits = network.eval()((images / 255 - mean) / std)
    torch.testing.assert_close(logits, run.inference.logits(run.inference.embed(images, "test")))
    assert config["classes"] == list(run.splits.class_names)
    assert config["image_size"] == images.shape[-1]
    assert config["training"]["fingerprint"] == run.fingerprint


@pytest.mark.parametrize("count", [1, 3, 100])
def test_onnx_agrees_for_any_number_of_images(exported: Path, run: Run, count: int) -> None:
    onnx.checker.check_model(str(exported / "model.onnx"))
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    images = run.splits.test.images[:count]
    logits, probabilities, embeddings, _ = session.run(None, {"images": images.numpy()})
    expected = run.inference.logits(run.inference.embed(images, "test"))
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(probabilities, expected.softmax(1).numpy(), atol=1e-5)
    embedded = run.inference.embed(images, "test")
    np.testing.assert_allclose(embeddings, embedded.numpy(), atol=1e-4)


def test_card_owns_up_to_wrong_labels(exported: Path, run: Run) -> None:
    assert "label_noise" not in (exported / "README.md").read_text(encoding="utf-8")
    queries = [{**row, "label": row["true_label"]} for row in run.queries]
    for row in queries[:3]:
        row["label"] = str((int(row["true_label"]) + 1) % 10)
    hp = dataclasses.replace(run.hp, label_noise=0.3)
    noisy = dataclasses.replace(run, queries=queries, hp=hp)
    card = model_card(noisy, read_exported(exported), None, Agreement(1, 0.0, 0), "given images")
    assert "3 of these labels are wrong" in card
    assert "(`label_noise: 0.3`)" in card


def test_card_says_what_was_measured(exported: Path, run: Run) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    row = run.metrics[run.round]
    assert f"| accuracy | {row['val_accuracy']:.3f} [" in card
    assert f"{len(run.pool.labelled)} of its {len(run.splits.train)} training images" in card
    assert run.splits.fingerprint() in card
    for heading in ("Data and labels", "Figures", "Intended use", "Limits"):
        assert f"\n## {heading}\n" in card
    assert "nan" not in card


def test_without_the_data_set(
    small_run: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    np.savez(tmp_path / "some.npz", images=run.splits.val.images[:9].squeeze(1).numpy())

    def gone(*_: object, **__: object) -> None:
        raise UserError("the data set is gone; bring it back")

    monkeypatch.setattr(reader, "load_data", gone)
    arguments = [str(small_run), "--output", str(tmp_path / "out")]
    assert export.main(arguments) == 2
    assert "by --images" in capsys.readouterr().err
    assert export.main([*arguments, "--images", str(tmp_path / "some.npz")]) == 0
    assert "of 9 images (given images)" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    row = run.metrics[run.round]
    assert f"| accuracy | {row['val_accuracy']:.3f} | {row['test_accuracy']:.3f} |" in card
    spent = int((run.pool.labels == 3).sum())
    precision, recall = row["test_precision_3"], row["test_recall_3"]
    assert f"| 3 | 3 | {spent} | {precision:.3f} | {recall:.3f} |" in card
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["temperature"] == pytest.approx(run.temperature)
    assert config["outliers"] is None
    assert not (tmp_path / "out" / "references.safetensors").exists()
    assert "no outlier flag" in card


def test_resnet_can_be_exported(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    network = SplitNetwork("resnet18", 3, 3, generator).eval()
    inference = Inference(network, torch.full((3,), 0.5), torch.ones(3), torch.float32, 8)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    write_onnx(inference, images[:2], tmp_path / "model.onnx")
    assert compare_onnx(inference, images, tmp_path / "model.onnx").other_classes == 0


def test_evidence_needs_mean_pooling() -> None:
    """A MobileNetV3 has a layer between its pooling and its embedding."""
    network = SplitNetwork("torchvision:mobilenet_v3_small", 3, 3, torch.Generator()).eval()
    inference = Inference(network, torch.full((3,), 0.5), torch.ones(3), torch.float32, 8)
    example = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert not PixelsToProbabilities(inference, example).has_evidence


def test_mean_over_rotations_can_be_exported(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=generator)
    sessions = []
    for averaging in (False, True):
        network = SplitNetwork(
            "small_cnn", 3, 3, torch.Generator().manual_seed(1), average_rotations=averaging
        )
        inference = Inference(
            network.eval(), torch.full((3,), 0.5), torch.ones(3), torch.float32, 8
        )
        file = tmp_path / f"{averaging}.onnx"
        write_onnx(inference, images[:2], file)
        assert compare_onnx(inference, images, file).difference < 1e-5
        sessions.append(onnxruntime.InferenceSession(str(file)))
    plain, averaged = sessions
    turned = {"images": images.rot90(1, (2, 3)).numpy()}
    one, other = (
        averaged.run(["logits"], given)[0] for given in ({"images": images.numpy()}, turned)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)
    # The evidence is that of the upright image in both.
    one, other = (one.run(["evidence"], {"images": images.numpy()})[0] for one in sessions)
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert not np.allclose(plain.run(["evidence"], turned)[0], one, atol=1e-2)


def test_a_run_its_export_and_its_service_average_over_rotations(
    make_learner: Callable[..., ActiveLearner], digits: Splits, tmp_path: Path
) -> None:
    learner = make_learner(flips_and_rotations=True, average_rotations=True)
    ask(learner)
    learner.train()
    evaluation = learner.evaluate(digits.val, digits.test)
    description = RunDescription.of_trial(learner, digits, Goal())
    folder = RunFolder.create(tmp_path / "run", {"hyperparameters": {}}, description, False)
    metrics = MetricsTable()
    metrics.add(0, {"val_loss": evaluation.val["loss"]})
    sources = digits.train.sources
    queries = queries_csv(learner.pool, digits.class_names, sources, digits.train.labels)
    folder.save_checkpoint(learner, metrics, queries)
    model = open_model(folder.path)
    images = digits.test.images
    logits = model.inference.logits(model.inference.embed(images, "test"))
    torch.testing.assert_close(logits, evaluation.test_logits)
    write_folder(content_without_data(Source(folder.path)), tmp_path / "exported")
    exported = read_exported(tmp_path / "exported")
    assert exported.average_rotations
    for name in ("onnx", "torch"):
        served, _ = load_engine(name, tmp_path / "exported", exported).run(images.numpy())
        np.testing.assert_allclose(served, evaluation.test_logits.numpy(), atol=1e-4)
    upright = model.inference.logits(model.inference.embed_batch(images, upright=True))
    assert not torch.allclose(upright, evaluation.test_logits, atol=1e-2)


def test_another_network_is_noticed(exported: Path, run: Run) -> None:
    other = SplitNetwork("small_cnn", 10, 1, torch.Generator().manual_seed(5)).eval()
    inference = Inference(other, run.inference.mean, run.inference.std, torch.float32, 8)
    images = run.splits.val.images[:8]
    with pytest.raises(UserError, match="differ from PyTorch"):
        compare_onnx(inference, images, exported / "model.onnx")


def test_verify_compares_on_all_validation_images(
    small_run: Path, exported: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(small_run), "--output", str(exported), "--verify"]) == 0
    output = capsys.readouterr().out
    assert f"class of 0 of {len(run.splits.val)} images (validation images)" in output


def test_verify_notices_another_checkpoint_and_another_network(
    small_run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = Path(shutil.copytree(exported, tmp_path / "changed"))
    verify = [str(small_run), "--output", str(changed), "--verify"]
    config = json.loads((changed / "config.json").read_text(encoding="utf-8"))
    config["training"]["checkpoint"] = "another-one"
    (changed / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert export.main(verify) == 2
    assert "holds checkpoint another-" in capsys.readouterr().err
    shutil.copy(exported / "config.json", changed / "config.json")
    proto = onnx.load(changed / "model.onnx")
    weights = next(one for one in proto.graph.initializer if "classifier.bias" in one.name)
    moved = onnx.numpy_helper.to_array(weights) + np.arange(10, dtype=np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(moved, weights.name))
    onnx.save(proto, changed / "model.onnx")
    assert export.main(verify) == 2
    assert "differ from PyTorch" in capsys.readouterr().err


def test_names_are_shown_literally_in_the_card(exported: Path, run: Run) -> None:
    names = ("a|b", "US$_$tile", *run.class_names[2:])
    description = dataclasses.replace(run.description, class_names=names, dataset="[set](x)")
    odd = dataclasses.replace(run, description=description)
    card = model_card(odd, read_exported(exported), None, Agreement(1, 0.0, 0), "given images")
    assert "| a\\|b |" in card
    assert "US\\$\\_\\$tile" in card
    assert "\\[set\\]\\(x\\)" in card


class TestRefusals:
    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
        assert export.main([str(one) for one in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    def test_place_that_is_taken(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        assert "not empty" in self.refused(capsys, small_run, "--output", tmp_path)
        assert "not empty" in self.refused(capsys, small_run, "--output", tmp_path / "file")
        below = tmp_path / "file" / "model"
        assert "cannot be made" in self.refused(capsys, small_run, "--output", below)

    def test_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = self.refused(capsys, tmp_path / "absent", "--output", tmp_path / "new")
        assert "not a run or checkpoint" in message
        assert "--images" not in message
        assert not (tmp_path / "new").exists()
