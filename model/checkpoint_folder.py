"""The folder a checkpoint lies in: found, read, and replaced as a whole.

A new checkpoint is written into `.partial` inside the folder. One rename, to `.saved`, makes it the folder's checkpoint; only then
is it linked to where everybody looks for it, and `.saved` goes. Killed at any moment, or with a full disk, the folder holds
the old checkpoint or the new one for whoever finds it through `find`; whoever does not finds no `config.json` in between.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .bundled import BUNDLED

CONFIG, INDEX = "config.json", "model.safetensors.index.json"

_ASIDE, _SAVED = ".partial", ".saved"
_FILES = (  # what a checkpoint may consist of; anything else in its folder (a log, a training state) is not ours to remove
    CONFIG,
    INDEX,
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "quiet_config.json",
    "quiet.safetensors",
    "correction.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded or saved; the message is one line and names the file and the key."""


def find(path: str | Path) -> Path:
    """Where the files of a checkpoint are: a folder, one that is bundled, or a model of the hub, fetched if need be.

    Raises CheckpointError.
    """
    folder = Path(path)
    if folder.is_dir():
        saved = folder / _SAVED  # whoever saved it was killed before all of it was in place
        return saved if saved.is_dir() else folder
    if str(path) in BUNDLED:
        return BUNDLED[str(path)]
    if folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise CheckpointError(f"{path}: no such checkpoint folder; bundled are {', '.join(BUNDLED)}")
    from huggingface_hub import snapshot_download  # slow to import, and wanted only here

    try:
        return Path(snapshot_download(str(path)))
    except Exception as error:  # the hub's client raises many kinds, and none of them is of use to the caller
        raise CheckpointError(f"{path}: neither a folder nor a model the hub gives: {first_line(error)}") from error


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object. Raises CheckpointError."""
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not an object")
    return values


def write_json(file: Path, values: dict[str, Any]) -> None:
    """The inverse of `read_json`."""
    file.write_text(json.dumps(values, indent=2) + "\n")


def check_files(folder: Path) -> None:
    """Open every tensor file once: a truncated one is named before anything is built. Raises CheckpointError."""
    if (folder / INDEX).exists():
        wanted = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        missing = [name for name in wanted if not (folder / name).exists()]
    else:
        missing = [] if (folder / "model.safetensors").exists() else ["model.safetensors"]
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: missing")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: damaged or truncated: {error}") from error


def read_tensors(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Those of these tensors that the files hold, as they are stored."""
    found, wanted = {}, set(names)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in wanted.intersection(opened.keys())}
    return found


def stored_dtype(folder: Path, counts: Callable[[str], bool]) -> torch.dtype:
    """The narrowest float that loses nothing of the tensors whose name `counts`; float32 if there are none."""
    widest: torch.dtype | None = None
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for dtype in {opened.get_slice(name).get_dtype() for name in opened.keys() if counts(name)}:  # noqa: SIM118
                if dtype in _FLOATS:
                    widest = torch.promote_types(widest or _FLOATS[dtype], _FLOATS[dtype])
    return widest or torch.float32


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write a checkpoint into; at the end that one becomes the checkpoint of `folder`.

    Files in `folder` that belong to no checkpoint stay.

    Raises:
        CheckpointError: the disk is full, something was in the way, or the block raised. `folder` is as it was, unless the
            message says otherwise.
    """
    was_there = folder.exists()
    aside = folder / _ASIDE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _SAVED).is_dir():
            _put_in_place(folder)  # what there was before is whole, should we fail
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        _settle(aside)
    except BaseException as error:  # an interrupt too
        shutil.rmtree(aside, ignore_errors=True)
        if not was_there:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, CheckpointError) or not isinstance(error, Exception):
            raise
        # The libraries raise many kinds: for a full disk OSError, SafetensorError, or a plain Exception.
        raise CheckpointError(f"{folder}: not saved: {first_line(error)}") from error
    _commit(folder, was_there)


def _settle(aside: Path) -> None:
    """Make what was written readable to whom `config.json` is, and wait until it is on the disk."""
    mode = (aside / CONFIG).stat().st_mode
    for file in aside.rglob("*"):
        if file.is_file():
            file.chmod(mode)  # safetensors lets nobody but the owner in: a server may run as somebody else
        _sync(file)
    _sync(aside)


def _commit(folder: Path, was_there: bool) -> None:
    aside, saved = folder / _ASIDE, folder / _SAVED
    try:
        os.replace(aside, saved)
        _sync(folder)
        if not was_there:
            _sync(folder.parent)
        _put_in_place(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: saved, but left in {saved.name}: {first_line(error)}") from error


def _put_in_place(folder: Path) -> None:
    """Move the saved checkpoint from its own folder to `folder`. Killed at any moment, it can be called again."""
    aside, saved = folder / _ASIDE, folder / _SAVED
    shutil.rmtree(aside, ignore_errors=True)
    names = sorted(file.relative_to(saved) for file in saved.rglob("*") if file.is_file())
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _link(saved / name, aside / name)
    # Who does not know of `.saved` must find nothing that passes for a checkpoint until all of the new one is there.
    (folder / CONFIG).unlink(missing_ok=True)
    for old in [file for pattern in _FILES for file in folder.glob(pattern)]:
        if old.relative_to(folder) not in names:
            old.unlink()
    _sync(folder)
    for name in sorted(names, key=lambda name: name == Path(CONFIG)):
        os.replace(aside / name, folder / name)
    shutil.rmtree(aside)
    _sync(folder)
    os.replace(saved, aside)  # in one step: half of it removed, it would still be taken for the checkpoint
    shutil.rmtree(aside)


def _link(file: Path, other: Path) -> None:
    """A second name for a file; a copy where the file system has no links."""
    try:
        os.link(file, other)
    except OSError:
        shutil.copyfile(file, other)
        _sync(other)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot do this to a folder
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)
