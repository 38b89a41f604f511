"""Brings images that are too many for a GPU to it, a few batches ahead of their use.

A thread gathers each batch into pinned memory and copies it on a stream of its own, so that neither
the gathering nor the copy holds up the network. Indices stay on the host: nothing waits for the GPU
at a step.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from data import release

AHEAD = 2  # batches gathered before they are asked for

# Waits, on the device, until a batch is there, and gives it.
Arrival = Callable[[], Tensor]
# Begins to copy a batch from the host.
Copy = Callable[[Tensor], Arrival]


def is_elsewhere(images: Tensor, device: torch.device) -> bool:
    """Whether batches of `images` have to be brought to `device`."""
    return images.device != device


def batches_on(
    device: torch.device,
    images: Tensor,
    index_batches: Iterable[Tensor],
    copy: Copy | None = None,
) -> Iterator[Tensor]:
    """The images of each batch of indices, on `device`, in the order of the batches.

    Args:
        device: where the batches are wanted.
        images: uint8 [N, C, H, W], on `device` or on the host; possibly mapped from a file.
        index_batches: int64 [b] each, on the device of `images`.
        copy: how a gathered batch gets to `device`; None: as the device needs it.

    Yields:
        uint8 [b, C, H, W].
    """
    if copy is None and not is_elsewhere(images, device):
        for indices in index_batches:
            yield images[indices]
            release(images)
        return
    begin_copy = copy or _copy_to(device)
    pinned = device.type == "cuda"

    def gather(indices: Tensor) -> Arrival:
        shape = (len(indices), *images.shape[1:])
        # PyTorch keeps pinned memory for the next batch, and until a copy from it is over.
        batch = torch.empty(shape, dtype=images.dtype, pin_memory=pinned)
        torch.index_select(images, 0, indices, out=batch)
        release(images)
        return begin_copy(batch)

    left = iter(index_batches)
    coming: deque[Future[Arrival]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            while True:
                for indices in itertools.islice(left, AHEAD + 1 - len(coming)):
                    coming.append(thread.submit(gather, indices))
                if not coming:
                    return
                yield coming.popleft().result()()
        finally:
            thread.shutdown(cancel_futures=True)


def _copy_to(device: torch.device) -> Copy:
    if device.type != "cuda":
        return lambda batch: lambda: batch.to(device)
    stream = torch.cuda.Stream(device)

    def begin(batch: Tensor) -> Arrival:
        with torch.cuda.stream(stream):
            copied = batch.to(device, non_blocking=True)
            done = stream.record_event()

        def arrive() -> Tensor:
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            copied.record_stream(current)  # its memory is not reused while the network reads it
            return copied

        return arrive

    return begin
