"""Measures the cost of large reports: confusion matrices, intervals and duplicates.

    python -m benchmarks.report_scale

Each case runs in a new process on synthetic data. It prints its CPU time and its peak resident
memory, less the memory of Python, torch and the data.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reporting.duplicates import exact_copies, near_copies
from reporting.intervals import Estimate
from reporting.measures import confusion_counts, estimates
from reporting.prediction_figures import confusion_matrix

IMAGES, SIDE = 60_000, 28
IMAGES_PER_CLASS = 10


def matrix(classes: int) -> Callable[[], object]:
    """A function that counts and draws a confusion matrix."""
    generator = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(0, classes, (2, 50 * classes), generator=generator)
    names = [f"class {c}" for c in range(classes)]
    return lambda: confusion_matrix(confusion_counts(predicted, labels, classes), names)


def measures(classes: int) -> Callable[[], dict[str, Estimate]]:
    """A function that computes all measures with intervals."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES_PER_CLASS * classes) % classes
    probabilities = torch.rand(len(labels), classes, generator=generator).double().softmax(1)
    return lambda: estimates(probabilities, probabilities, labels, None, 1000, generator)[0]


def duplicates(images: Tensor) -> Callable[[], object]:
    """A function that finds exact and near duplicates among images split 80 / 10 / 10."""
    splits = images.split([len(images) * 8 // 10, len(images) // 10, len(images) // 10])
    generator = torch.Generator().manual_seed(0)

    def find() -> object:
        exact = exact_copies(splits)
        originals = torch.ones(len(images), dtype=torch.bool)
        originals[exact.second] = False
        return exact, near_copies(splits, originals.nonzero().flatten(), 0.95, generator)

    return find


def different_images() -> Tensor:
    """Random images with broad structures."""
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(IMAGES, 3, SIDE, SIDE, dtype=torch.uint8)
    for part in images.split(1000):
        coarse = torch.randint(40, 200, (len(part), 3, 6, 6), generator=generator).float()
        part.copy_(F.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 255))
    return images


def frames(deviation: float) -> Tensor:
    """Pictures of one scene, each with noise of its own of so many grey levels."""
    generator = torch.Generator().manual_seed(0)
    images = different_images()
    scene = images[0].float()
    for part in images.split(1000):
        noise = torch.randn(part.shape, generator=generator)
        part.copy_((scene + deviation * noise).clamp(0, 255))
    return images


def noise() -> Tensor:
    """Images of nothing but noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def copies() -> Tensor:
    """Copies of a hundred images."""
    generator = torch.Generator().manual_seed(0)
    return different_images()[torch.randint(0, 100, (IMAGES,), generator=generator)]


CASES: dict[str, Callable[[], Callable[[], object]]] = {
    "confusion matrix, 200 classes": lambda: matrix(200),
    "confusion matrix, 1,000 classes": lambda: matrix(1000),
    "measures with intervals, 1,000 classes, 10,000 images": lambda: measures(1000),
    "duplicates, 60,000 different images": lambda: duplicates(different_images()),
    "duplicates, 60,000 copies of 100 images": lambda: duplicates(copies()),
    "duplicates, 60,000 nearly equal frames": lambda: duplicates(frames(4)),
    # The worst case: so much noise that no two frames are alike, and every two nearly.
    "duplicates, 60,000 noisy frames": lambda: duplicates(frames(20)),
    "duplicates, 60,000 images of noise": lambda: duplicates(noise()),
}


def measure(case: str) -> None:
    """Run one case and print its line."""
    work = CASES[case]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    work()
    seconds = time.process_time() - started
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{case}: {seconds:.1f} s of CPU time, {megabytes:.0f} MB", flush=True)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="default: all, each in its own process")
    arguments = parser.parse_args()
    if arguments.case is not None:
        measure(arguments.case)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.report_scale", "--case", case]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
