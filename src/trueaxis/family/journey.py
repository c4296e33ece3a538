"""Families: one base bit for bit, and of every member what it adds to it, at a rate of its own.

    BASE ─▶ OUT/base, lossless                     member − base ─▶ quantize, entropy-code ─▶ OUT/members/NAME
                                                   norms and the like ─▶ planes of bits beside the base's

A member is measured as if it were compressed alone: its own activations, its own sensitivities. Its directory is an
ordinary compressed one whose tensors need the base, which `family.json` in the root lets them find. Adding a member
writes its directory and that list, and touches no other member.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trueaxis.align.gauge import identity
from trueaxis.align.network import Network
from trueaxis.container import is_compressed
from trueaxis.family.adapter import dearer_than_adapter, is_adapter, merged
from trueaxis.family.delta import Delta
from trueaxis.header import is_tensor_name
from trueaxis.lossless.journey import compress_lossless, exact_entry
from trueaxis.metric.source import obtain_statistics
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.model.graph import trace
from trueaxis.parallel import default_threads, one_thread
from trueaxis.preparation import Prepared, facts_of, jobs_of
from trueaxis.progress import Progress, silent
from trueaxis.recipe import Recipe
from trueaxis.recipe import recipe as find_recipe
from trueaxis.runtime.base_model import BaseModel, fingerprint
from trueaxis.runtime.members import BASE, MEMBERS, family_members, is_family, write_members
from trueaxis.stages import Identity, NoDrift, NoTuning
from trueaxis.staging import check_free
from trueaxis.types import Aligned, CompressionReport, TrueaxisError


@dataclass(frozen=True)
class FamilyReport:
    """What a call wrote: `base` is None where the base was there already; `members` are the new ones, by name."""

    base: CompressionReport | None
    members: dict[str, CompressionReport]


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
        bits_delta: Of each member, per parameter of it, all bytes of its files counted.
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
    names, chosen, root = _checked_names(members), _checked_recipe(recipe), Path(out)
    if not bits_delta > 0:
        raise TrueaxisError(f"bits_delta: expected a positive number, found {bits_delta}")
    for name, member in zip(names, map(Path, members), strict=True):
        if (root / MEMBERS / name).exists():
            raise TrueaxisError(f"{root / MEMBERS / name}: exists; remove it, or name the member otherwise")
        if not is_adapter(member):
            Checkpoint.open(member)
    report = None
    if not is_family(root):
        report = _written_base(base, root, [base, *members, *calibration], threads, progress)
    listed = family_members(root)
    beside = _checked_base(BaseModel(root / BASE), Path(base), root)
    reports: dict[str, CompressionReport] = {}
    for name, member in zip(names, map(Path, members), strict=True):
        with tempfile.TemporaryDirectory(prefix="trueaxis.") as folder:
            plain = merged(member, Path(base), Path(folder)) if is_adapter(member) else member
            begun = time.perf_counter()
            prepared = prepare_member(
                Checkpoint.open(plain), beside, chosen, bits_delta, calibration,
                seed=seed, threads=threads or default_threads(), device=device, progress=progress,
            )  # fmt: skip
            target = prepared.checkpoint.bytes_at(bits_delta)
            files = prepared.fit(target)
            notes = dearer_than_adapter(member, files.file_bytes) if is_adapter(member) else []
            reports[name] = prepared.save(files, root / MEMBERS / name, False, begun, target, notes=notes)
        listed = [*listed, name]
        write_members(root, listed)
    return FamilyReport(report, reports)


@one_thread()
def prepare_member(
    member: Checkpoint,
    beside: BaseModel,
    recipe: Recipe,
    bits: float,
    calibration: Sequence[str | Path],
    *,
    seed: int,
    threads: int,
    device: str,
    progress: Progress,
) -> Prepared:
    """Measures a member and plans what it adds to the base; arguments as of `compress_family`."""
    weights = trace(member)
    for weight in weights:
        if weight.role == "exact":
            check_finite(weight.name, member.tensor(weight.name))
    measured = obtain_statistics(member, weights, calibration, None, seed, device, progress)
    delta = Delta.beside(member, beside)
    network = Network(delta, weights, measured, 8.0 * member.bytes_at(bits), seed, threads, calibration)
    alignment = identity(Identity(), network)
    jobs = [
        # what is reported is the error of the whole weight
        replace(job, aligned=Aligned("beside the base", member.matrix(job.weight).float().numpy(), job.metric))
        for job in jobs_of(network, alignment, recipe, threads, progress)
    ]
    exact = [exact_entry(member, weight.name, beside) for weight in weights if weight.role == "exact"]
    moved = {job.weight.tensor for job in jobs if delta.moves(job.weight.tensor)}
    bases = {name: fingerprint(beside.bits(name)) for name in sorted(moved)}
    header = {**facts_of(recipe, measured, alignment), "base": BASE}
    return Prepared(
        member, recipe, measured, weights, alignment, jobs, exact, header, threads, progress, {}, bases=bases
    )


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
