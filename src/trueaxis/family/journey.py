"""Families: one base bit for bit, and of every member what it adds to it, at a rate of its own.

    BASE ─▶ OUT/base, lossless        what several members share ─▶ OUT/tangent/1 …
    member − base − its shares ─▶ quantize, entropy-code ─▶ OUT/members/NAME; norms and the like beside the base's

A member is measured as if it were compressed alone: its own activations, its own sensitivities. Its directory is an
ordinary compressed one whose tensors need the base and directions, which `family.json` in the root lets them find.
Adding a member writes its directory and that list, and touches no other: what is there is used as it stands.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from trueaxis.align.gauge import identity
from trueaxis.container import is_compressed
from trueaxis.family.adapter import dearer_than_adapter, is_adapter, merged
from trueaxis.family.directions import shared_directions, shares_of
from trueaxis.family.matching import matched, write_matched
from trueaxis.family.measured import Measured, measure
from trueaxis.family.span import write_direction
from trueaxis.header import MOST_DIRECTIONS, is_tensor_name
from trueaxis.lossless.journey import compress_lossless, exact_entry
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads, one_thread
from trueaxis.preparation import Prepared, facts_of, jobs_of
from trueaxis.progress import Progress, silent
from trueaxis.recipe import Recipe
from trueaxis.recipe import recipe as find_recipe
from trueaxis.record import Record, RecordType
from trueaxis.runtime.base_model import BaseModel, fingerprint
from trueaxis.runtime.members import (
    BASE,
    MEMBERS,
    TANGENT,
    family_directions,
    family_members,
    is_family,
    write_members,
)
from trueaxis.runtime.tangent import Directions, open_direction
from trueaxis.stages import Identity, NoDrift, NoTuning
from trueaxis.staging import check_free
from trueaxis.types import Aligned, CompressionReport, TrueaxisError

MATCHED = "channels and heads are stored in the base's order: an equivalent network, whose tensors are not its own"


@dataclass(frozen=True)
class FamilyReport:
    """What a call wrote: `base` is None where the base was there already; `members` are the new ones, by name.

    Attributes:
        directions: Bytes of each new direction that members share; parts of these count as theirs.
    """

    base: CompressionReport | None
    members: dict[str, CompressionReport]
    directions: tuple[int, ...] = ()


def compress_family(
    base: str | Path,
    members: Sequence[str | Path],
    out: str | Path,
    *,
    bits_delta: float,
    calibration: Sequence[str | Path] = (),
    recipe: str | Path | Recipe = "identity",
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> FamilyReport:
    """Compresses fine-tunes of one checkpoint, or adds some to a family that is there.

    Args:
        base: Directory of the checkpoint that all started from; it is stored bit for bit.
        members: Directories of fine-tunes of it, or of LoRA adapters; a member is known by its directory's name.
        out: Root of the family: created, or one of the same base.
        bits_delta: Of each member, per parameter of it, all bytes of its files counted, and of directions that this
            call adds an equal part.
        calibration: Token ids (.npy) or text files; by default text sampled from each member.
        recipe: As of `trueaxis.compress`, in the checkpoint's own axes.
        seed: Of every random choice.
        threads: Workers; all processors by default.
        device: Torch device that runs models.
        progress: Told of every stage.

    Raises:
        TrueaxisError: Bad input, by name; members written before stay.

    Example:
        >>> trueaxis.compress_family("llama", ["chat", "code"], "family", bits_delta=1)   # doctest: +SKIP
        >>> model = trueaxis.load("family", member="chat")                                 # doctest: +SKIP
    """
    chosen, root = _checked_recipe(recipe), Path(out)
    if not bits_delta > 0:
        raise TrueaxisError(f"bits_delta: expected a positive number, found {bits_delta}")
    paths, inputs = _checked_paths(members, root), [base, *members, *calibration]
    report = None if is_family(root) else _written_base(base, root, inputs, threads, progress)
    beside = _checked_base(BaseModel(root / BASE), Path(base), root)
    listed, workers, reports = family_members(root), threads or default_threads(), {}
    read = partial(
        measure, beside=beside, recipe=chosen, bits=bits_delta, calibration=calibration, seed=seed, threads=workers,
        device=device, progress=progress,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="trueaxis.") as folder:
        begun = time.perf_counter()
        measured, moved = _measured(paths, Path(base), Path(folder), read)
        added = _written_directions(list(measured.values()), root, workers, progress)
        shared = Directions([open_direction(path) for path in family_directions(root)])
        for name, member in paths.items():
            found = measured.pop(name)
            prepared = prepare_member(found, beside, shared, threads=workers, progress=progress)
            files = prepared.fit(target := found.target - sum(added) // len(paths))
            notes = _notes(prepared, files.file_bytes, member) + [MATCHED] * (name in moved)
            reports[name] = prepared.save(files, root / MEMBERS / name, False, begun, target, notes=notes)
            write_members(root, [*listed, *reports], len(shared.decoders))
            begun = time.perf_counter()
    return FamilyReport(report, reports, tuple(added))


@one_thread()
def prepare_member(
    member: Measured, beside: BaseModel, shared: Directions, *, threads: int, progress: Progress
) -> Prepared:
    """Plans what a member adds to the base and to its shares of directions.

    Args:
        member: Measured.
        beside: The base.
        shared: Directions of the family.
        threads: Workers; the bytes do not depend on it.
        progress: Told of every matrix.
    """
    shares = shares_of(member, shared)
    delta, recipe, original = member.delta.less(shared, shares), member.recipe, member.checkpoint
    network = replace(member.network, checkpoint=delta)
    alignment = identity(Identity(), network)
    jobs = [
        # what is reported is the error of the whole weight
        replace(job, aligned=Aligned("beside the base", original.matrix(job.weight).float().numpy(), job.metric))
        for job in jobs_of(network, alignment, recipe, threads, progress)
    ]
    exact = [exact_entry(original, weight.name, beside) for weight in member.weights if weight.role == "exact"]
    moved = sorted({job.weight.tensor for job in jobs if delta.moves(job.weight.tensor)})
    first = {
        name: (
            Record(RecordType.BASE, fingerprint(beside.bits(name))),
            *((Record(RecordType.TANGENT, shares[name]),) if name in shares else ()),
        )
        for name in moved
    }
    header = {**facts_of(recipe, member.statistics, alignment), "base": BASE}
    header |= {"tangent": shared.fingerprints} if shares else {}
    return Prepared(
        original, recipe, member.statistics, member.weights, alignment, jobs, exact, header, threads, progress, {},
        beside=first,
    )  # fmt: skip


def _written_directions(members: Sequence[Measured], root: Path, threads: int, progress: Progress) -> list[int]:
    """Bytes of each direction that these members are given."""
    known = len(family_directions(root))
    room = MOST_DIRECTIONS - known
    found = shared_directions(members, room) if len(members) > 1 and room else []
    original, recipe = members[0].checkpoint, members[0].recipe
    added = [
        write_direction(jobs, original, recipe, root / TANGENT / str(known + number), threads, progress)
        for number, jobs in enumerate(found, 1)
    ]
    if added:
        write_members(root, family_members(root), known + len(added))
    return added


def _notes(prepared: Prepared, file_bytes: int, path: Path) -> list[str]:
    """Of a member: that its adapter is smaller, and how many tensors are coded with directions, where some are."""
    notes = dearer_than_adapter(path, file_bytes) if is_adapter(path) else []
    if count := sum(len(records) > 1 for records in prepared.beside.values()):
        notes.append(f"{count} of {len(prepared.beside)} tensors take shares of the family's directions")
    return notes


def _written_base(
    base: str | Path, root: Path, inputs: Sequence[str | Path], threads: int | None, progress: Progress
) -> CompressionReport | None:
    """The base in the root of a new family; None where a run that was cut short has written it."""
    report = None
    if not is_compressed(root / BASE):
        if root.exists() and not (root.is_dir() and not any(root.iterdir())):
            raise TrueaxisError(f"{root}: is not empty and no family; choose another path")
        check_free(root, False, inputs)
        report = compress_lossless(base, root / BASE, threads=threads, progress=progress)
    write_members(root, [])
    return report


def _measured(
    paths: Mapping[str, Path], base: Path, folder: Path, read: Callable[[Checkpoint], Measured]
) -> tuple[dict[str, Measured], set[str]]:
    """Members by name, each in the base's order, and which of them are not as they were given."""
    found: dict[str, Measured] = {}
    moved: set[str] = set()
    for number, (name, path) in enumerate(paths.items()):
        plain = path
        if is_adapter(path):
            plain = folder / str(number)
            plain.mkdir()
            merged(path, base, plain)
        found[name] = read(Checkpoint.open(plain))
        if changes := matched(found[name]):
            found[name] = read(Checkpoint.open(write_matched(found[name], changes, folder / f"{number}.matched")))
            moved.add(name)
    return found, moved


def _checked_paths(members: Sequence[str | Path], root: Path) -> dict[str, Path]:
    """Members by name."""
    paths = dict(zip(_checked_names(members), map(Path, members), strict=True))
    for name, path in paths.items():
        if (root / MEMBERS / name).exists():
            raise TrueaxisError(f"{root / MEMBERS / name}: exists; remove it, or name the member otherwise")
        if not is_adapter(path):
            Checkpoint.open(path)
    return paths


def _checked_recipe(recipe: str | Path | Recipe) -> Recipe:
    """A recipe that members can be made by, without drift: their blocks are not what their files alone decode to."""
    found = find_recipe(recipe)
    if not isinstance(found.align, Identity):
        raise TrueaxisError("a family keeps the checkpoint's own axes: give a recipe whose align stage is 'identity'")
    if not isinstance(found.tune, NoTuning):
        raise TrueaxisError("members of a family are not tuned: give a recipe that does not tune")
    return replace(found, drift=NoDrift())


def _checked_names(members: Sequence[str | Path]) -> list[str]:
    names = [Path(member).resolve().name for member in members]
    for number, name in enumerate(names):
        if not is_tensor_name(name) or name.startswith("."):
            raise TrueaxisError(
                f"{members[number]}: a member is known by its directory's name, and {name!r} does not do"
            )
        if name in names[:number]:
            first = members[names.index(name)]
            raise TrueaxisError(f"{members[number]}: {first} is named {name!r} too; members need names of their own")
    return names


def _checked_base(stored: BaseModel, base: Path, root: Path) -> BaseModel:
    """The stored base, if it is the one given."""
    given = BaseModel(base)
    if (name := stored.difference(given)) is not None:
        raise TrueaxisError(f"{name}: differs between {base} and the base of the family {root}; give the base it has")
    return stored
