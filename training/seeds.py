"""Derives one seed per purpose from the trial seed, so that no two purposes share a stream."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(trial_seed: int, purpose: str, *numbers: int) -> int:
    """A seed in [0, 2**63): a pure function of its arguments, the same on every machine."""
    text = "/".join([str(trial_seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def make_generator(
    trial_seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on `device`, seeded by `derive_seed`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(trial_seed, purpose, *numbers))
    return generator
