"""Which files of a folder are images, of which class, and in which split.

Two layouts are read, `NAME/CLASS/...` and `NAME/{train,val,test}/CLASS/...`, with sub-folders of
any depth below a class. Images beside the class folders, or in a folder called `unlabelled`, have
no label. What is no image is counted, and never left out in silence.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data_sources.folder_tree import Tree, describe_left_out
from data_sources.names import readable
from data_sources.raw import UNLABELLED, Notes, describe_os_error
from data_sources.splitting import TEST, TRAIN, VALIDATION
from errors import UserError

CLASS_LIST = "classes.txt"
SPLIT_NAMES = {
    "train": TRAIN, "training": TRAIN,
    "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION,
    "test": TEST, "testing": TEST,
}  # fmt: skip
UNLABELLED_FOLDERS = {"unlabelled", "unlabeled"}
_NAMED_AT_MOST = 3  # examples in a message


@dataclass(frozen=True)
class Listing:
    """The image files of a data set, folder by folder in order of name.

    Attributes:
        class_names: of the classes, in the order of their labels.
        paths: of the images relative to the data set's folder, as the system writes them.
        labels: int64 [N]; `UNLABELLED` for images without a class.
        splits: int64 [N], TRAIN, VALIDATION or TEST; None where the folders say nothing.
        notes: what was left out, and what the layout means.
    """

    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.int64] | None
    notes: Notes


def list_images(
    root: Path,
    allow_unlabelled: bool = False,
    not_images: Sequence[str] = (),
) -> Listing:
    """List the images below `root`.

    The classes are the lines of `root/classes.txt`, in that order, or else the names of the class
    folders in alphabetical order.

    Args:
        allow_unlabelled: list images without a class too; otherwise they are left out, and a note
            says so.
        not_images: names of files in `root` that serve another purpose.

    Raises:
        UserError: the folder cannot be read, its layout is not clear, or it holds too few classes.
    """
    try:
        tree = Tree.of(root)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = describe_os_error(error) if isinstance(error, OSError) else "a loop of links"
        where = readable(getattr(error, "filename", None) or root)
        raise UserError(
            f"{where}: cannot be read ({reason}); {root} must hold one folder of images per class"
        ) from error
    names = _read_class_list(root / CLASS_LIST)
    notes = Notes()
    others = [path for path in tree.others if str(path) not in (CLASS_LIST, *not_images)]
    if others:
        notes.warnings.append(f"{root}: {describe_left_out(others)}")
    layout = _split_layout(root, tree.images)
    listing = _labelled(root, tree, names, layout, notes)
    if not allow_unlabelled:
        listing = _without_unlabelled(root, listing, bool(names))
    if len(listing.class_names) < 2:
        raise UserError(_too_few_classes(root, listing))
    _warn_of_similar_names(root, listing)
    if len(listing.paths) == 0:
        raise UserError(f"{root}: no images; put some there")
    return listing


def _too_few_classes(root: Path, listing: Listing) -> str:
    """What to do about a folder with one class or none."""
    inner = {PurePosixPath(path).parts[1] for path in listing.paths if path.count("/") > 1}
    count = len(listing.class_names)
    if count == 1 and len(inner) > 1:
        return (
            f"{root}: 1 class folder, {listing.class_names[0]!r}, and folders below it "
            f"({', '.join(map(readable, sorted(inner)[:_NAMED_AT_MOST]))}); if those are the "
            "classes, move them up"
        )
    return (
        f"{root}: {count} class folders; make one folder of images for each class, or list the "
        f"classes of unlabelled images in {CLASS_LIST}, one a line"
    )


def _warn_of_similar_names(root: Path, listing: Listing) -> None:
    """Say where two classes differ only in case or in spaces, as Cat and cat do."""
    first: dict[str, str] = {}
    for name in listing.class_names:
        other = first.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            listing.notes.warnings.append(
                f"{root}: {other!r} and {name!r} are two classes; join the folders if they are one"
            )


def _read_class_list(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line; none where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); give a UTF-8 text with one class name a line"
        ) from error
    names = tuple(readable(line.strip()) for line in lines if line.strip())
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if len(names) < 2 or repeated:
        problem = f"{repeated[0]!r} stands twice" if repeated else f"{len(names)} class names"
        raise UserError(f"{path}: {problem}; give two names or more, each once, one a line")
    return names


def _split_layout(root: Path, images: Sequence[PurePosixPath]) -> dict[str, int]:
    """The top folders that mean splits, with the split of each; empty where they mean classes."""
    tops = sorted({path.parts[0] for path in images if len(path.parts) > 1})
    splits = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    classes = [top for top in tops if top not in splits and top.lower() not in UNLABELLED_FOLDERS]
    has_classes_below = any(len(path.parts) > 2 and path.parts[0] in splits for path in images)
    if not splits or (classes and not has_classes_below):
        return {}
    if classes:
        raise UserError(
            f"{root}: holds {', '.join(splits)}, which mean splits, beside "
            f"{', '.join(map(readable, classes[:_NAMED_AT_MOST]))}; move every class into the "
            "splits, or rename the folder that is a class"
        )
    if len(set(splits.values())) < len(splits):
        raise UserError(f"{root}: {', '.join(splits)} mean the same split twice; join them")
    if TRAIN not in splits.values() or not has_classes_below:
        missing = "no folder train" if TRAIN not in splits.values() else "no class folders in them"
        raise UserError(
            f"{root}: {', '.join(splits)} mean splits, but there are {missing}; "
            f"give {root}/train/CLASS/, and val and test where you have them"
        )
    return splits


def _labelled(
    root: Path, tree: Tree, names: tuple[str, ...], layout: dict[str, int], notes: Notes
) -> Listing:
    """Every image with its label and split."""
    depth = 1 if layout else 0
    classes: list[str | None] = []
    splits: list[int] = []
    paths: list[str] = []
    unlabelled_held_out: Counter[str] = Counter()
    for path in tree.images:
        split = layout.get(path.parts[0], TRAIN)
        # An image beside the split folders has no class either.
        below = path.parts[depth:] if path.parts[0] in layout or not layout else path.parts[-1:]
        class_name = readable(below[0]) if len(below) > 1 else None
        if class_name is not None and class_name.lower() in UNLABELLED_FOLDERS:
            class_name = None
        if class_name is None and split != TRAIN:
            unlabelled_held_out[path.parts[0]] += 1
            continue
        classes.append(class_name)
        splits.append(split)
        paths.append(str(path))
    for folder, count in unlabelled_held_out.items():
        notes.warnings.append(
            f"{root}/{folder}: {count} images without a class folder left out; a split that is "
            "only measured needs labels"
        )
    present = sorted({name for name in classes if name is not None})
    if names:
        unknown = [name for name in present if name not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"{root}: folder {unknown[0]!r} is not in the list of classes{hint}; rename it, "
                "add it to the list, or call it unlabelled"
            )
    _check_empty_folders(root, tree, depth, layout, set(present), notes)
    names = names or tuple(present)
    number = {name: label for label, name in enumerate(names)}
    labels = [UNLABELLED if name is None else number[name] for name in classes]
    # Unlabelled images come last, so that equal pixels count towards the class that is known.
    order = np.argsort(np.array(labels, dtype=np.int64) == UNLABELLED, kind="stable")
    return Listing(
        names,
        tuple(paths[index] for index in order),
        np.array(labels, dtype=np.int64)[order],
        np.array(splits, dtype=np.int64)[order] if layout else None,
        notes,
    )


def _check_empty_folders(
    root: Path,
    tree: Tree,
    depth: int,
    layout: dict[str, int],
    present: set[str],
    notes: Notes,
) -> None:
    """Say which class folders hold no image; refuse those that hold only files we cannot read."""
    empty: dict[str, PurePosixPath] = {}
    for folder in tree.folders:
        name = readable(folder.name)
        is_class = len(folder.parts) == depth + 1 and (not layout or folder.parts[0] in layout)
        if is_class and name not in present and name.lower() not in UNLABELLED_FOLDERS:
            empty.setdefault(name, folder)
    for name, folder in empty.items():
        if not layout and name.lower() in SPLIT_NAMES:
            continue
        unreadable = [path for path in tree.others if folder in path.parents]
        if unreadable:
            raise UserError(
                f"{readable(root / folder)}: no image that can be read among its "
                f"{len(unreadable)} files (such as {readable(unreadable[0].name)}); convert them "
                "to PNG, or move the folder away"
            )
        notes.warnings.append(f"{readable(root / folder)}: an empty folder, so no class")


def _without_unlabelled(root: Path, listing: Listing, are_classes_listed: bool) -> Listing:
    labelled = listing.labels != UNLABELLED
    left_out = int((~labelled).sum())
    if not left_out:
        return listing
    if not labelled.any():
        raise UserError(
            f"{root}: {left_out} images and none in a class folder; make one folder of images for "
            "each class, or have people label them (oracle: people"
            + (")" if are_classes_listed else f", with the class names in {CLASS_LIST})")
        )
    listing.notes.warnings.append(
        f"{root}: {left_out} images left out, as they lie in no class folder (such as "
        f"{readable(listing.paths[int(np.argmin(labelled))])})"
    )
    return Listing(
        listing.class_names,
        tuple(path for path, keep in zip(listing.paths, labelled, strict=True) if keep),
        listing.labels[labelled],
        None if listing.splits is None else listing.splits[labelled],
        listing.notes,
    )
