"""scikit-learn's bundled handwritten digits (1,797 grey images, 10 classes): needs no network."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from data_sources.raw import RawSplit, RawSplits
from data_sources.resizing import resize
from data_sources.sources import ArraySources
from data_sources.splitting import SplitRequest, duplicate_groups, stratified_split

BRIGHTEST = 16  # the pixels are counts 0..16


def load(image_size: int, request: SplitRequest) -> RawSplits:
    """The digits as uint8 `[N, image_size, image_size, 1]`, enlarged from 8x8, in our own split."""
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    class_names = tuple(str(name) for name in bunch.target_names)
    small = np.rint(bunch.images * (255 / BRIGHTEST)).astype(np.uint8)
    images = resize(small[..., np.newaxis], image_size)
    parts = stratified_split(labels, duplicate_groups(images), class_names, request)
    train, val, test = (
        RawSplit(
            images[part],
            labels[part],
            f"digits: {name} images",
            f"digits: {name} labels",
            ArraySources("digits", part),
        )
        for name, part in zip(("train", "val", "test"), parts, strict=True)
    )
    return RawSplits("digits", class_names, train, val, test, channels=1)
