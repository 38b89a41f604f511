"""The straightforward implementation with which `benchmarks.speed` compares the package.

It works like many published programs. It computes in float32 with contiguous memory. DataLoader
workers open and augment each image on its own with PIL. T Monte Carlo samples take T passes of the
whole network, and the query strategy loops over its picks. The network and the loss are those of
the package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as transforms
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.speed.naive import weighted_d2_sampling
from data import ImageStore
from resnet_custom import SplitNetwork
from training.augmentation import STAIN_DENSITIES
from training.hyperparameters import Hyperparameters
from training.metrics import classification_metrics


class StainJitter:
    """Randomly varies the amounts of three stains in an image: float32 [3, H, W] in [0, 1]."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        densities = np.array(STAIN_DENSITIES)
        self.to_rgb = densities / np.linalg.norm(densities, axis=1, keepdims=True)

    def __call__(self, image: Tensor) -> Tensor:
        """The image with varied stains."""
        density = -np.log(image.permute(1, 2, 0).numpy().clip(1 / 255, 1)).reshape(-1, 3)
        stains = density @ np.linalg.inv(self.to_rgb)
        stains *= np.random.uniform(1 - self.strength, 1 + self.strength, 3)
        stains += np.random.uniform(-self.strength / 10, self.strength / 10, 3)
        colours = np.exp(-(stains @ self.to_rgb)).clip(0, 1)
        return torch.from_numpy(colours.reshape(*image.shape[1:], 3)).permute(2, 0, 1).float()


class QuarterTurn:
    """Randomly turns an image by 90 degrees or leaves it unchanged."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, turned or unchanged."""
        turned = torch.rand(()) < 0.5
        return image.transpose(Image.Transpose.ROTATE_90) if turned else image


class PILDataset(Dataset[Any]):
    """PIL images, transformed one by one by torchvision."""

    def __init__(self, store: ImageStore, indices: Tensor, transform: Any) -> None:
        self.images = store.images.permute(0, 2, 3, 1).cpu().numpy()
        self.labels = store.labels.cpu()
        self.indices = indices.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        index = self.indices[position]
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Baseline:
    """Query, training and evaluation on colour images, in a straightforward implementation.

    Args:
        hp: gives architecture, batch size, augmentation, rates and passes.
        train: the pool.
        device: the device that computes.
        workers: processes of each DataLoader; None means one per core, at most 8.
    """

    def __init__(
        self,
        hp: Hyperparameters,
        train: ImageStore,
        device: torch.device,
        workers: int | None = None,
    ) -> None:
        self.hp, self.train_store, self.device = hp, train, device
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
        pixels = train.images.float() / 255
        to_tensor = [transforms.ToTensor()]
        normalise = [transforms.Normalize(pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)))]
        augmented = [
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            QuarterTurn(),
            transforms.RandomCrop(
                train.images.shape[-1], padding=hp.crop_padding, padding_mode="reflect"
            ),
            transforms.ColorJitter(*[hp.colour_jitter] * 3),
        ]
        stain = [StainJitter(hp.stain_jitter)]
        self.plain_transform = transforms.Compose(to_tensor + normalise)
        self.augmenting_transform = transforms.Compose(augmented + to_tensor + stain + normalise)
        network = SplitNetwork(
            hp.architecture, train.num_classes, 3, torch.Generator().manual_seed(0)
        )
        self.network = nn.Sequential(
            network.backbone, nn.Dropout(hp.dropout), network.classifier
        ).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=hp.learning_rate)
        self.labelled = torch.randperm(len(train))[: hp.initial_labeled_size]

    def batches(
        self, store: ImageStore, indices: Tensor, training: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of a store, batch by batch, on the device."""
        transform = self.augmenting_transform if training else self.plain_transform
        loader = DataLoader(
            PILDataset(store, indices, transform),
            batch_size=self.hp.batch_size,
            shuffle=training,
            drop_last=training,
            num_workers=self.workers,
        )
        for images, labels in loader:
            yield images.to(self.device), labels.to(self.device)

    def training_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of the labelled images."""
        while True:
            yield from self.batches(self.train_store, self.labelled, training=True)

    def train(self, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> float:
        """Take `steps` optimizer steps; returns the summed loss."""
        self.network.train()
        total = 0.0
        for _ in range(steps):
            images, labels = next(batches)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(
                self.network(images), labels, label_smoothing=self.hp.label_smoothing
            )
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total

    @torch.no_grad()
    def score(self, candidates: Tensor, passes: int) -> tuple[Tensor, Tensor]:
        """Probabilities [T, n, C], from T passes of the whole network, and embeddings [n, D]."""
        self.network.eval()
        self.network[1].train()
        probabilities, embeddings = [], []
        for images, _ in self.batches(self.train_store, candidates, training=False):
            samples = []
            for _ in range(passes):
                embedded = self.network[0](images)
                samples.append(self.network[1:](embedded).softmax(1).cpu())
            probabilities.append(torch.stack(samples))
            embeddings.append(embedded.cpu())
        return torch.cat(probabilities, 1), torch.cat(embeddings)

    def query(self, candidates: Tensor, k: int) -> Tensor:
        """Label k uncertain and diverse candidates, chosen as by uncertainty_diversity."""
        probabilities, embeddings = self.score(candidates, self.hp.uncertainty_passes)
        mean = probabilities.mean(0)
        entropy = -(mean * mean.clamp_min(1e-12).log()).sum(1)
        kept = entropy.argsort(descending=True)[: self.hp.prefilter_factor * k]
        picked = weighted_d2_sampling(embeddings[kept].numpy(), entropy[kept].numpy(), k)
        chosen = candidates[kept[torch.from_numpy(picked)]]
        self.labelled = torch.cat([self.labelled, chosen])
        return chosen

    @torch.no_grad()
    def evaluate(self, store: ImageStore) -> dict[str, float]:
        """Loss, accuracy and AUC on a store."""
        self.network.eval()
        everything = torch.arange(len(store))
        batches = self.batches(store, everything, training=False)
        logits = torch.cat([self.network(images).cpu() for images, _ in batches])
        return classification_metrics(logits, store.labels.cpu())
