"""Members: where the parts of a family lie.

ROOT/family.json   list of members          ROOT/base           the base, bit for bit
ROOT/tangent/1 …   directions that members share
                                            ROOT/members/NAME   what a member adds to them
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trueaxis.header import MOST_DIRECTIONS, is_tensor_name
from trueaxis.staging import writing
from trueaxis.types import FormatError

FAMILY, BASE, MEMBERS, TANGENT = "family.json", "base", "members", "tangent"
VERSION = 1
DEPTH = 2  # directories between a member and the root of its family
LIST_LIMIT = 1 << 20  # bytes of the list


def is_family(path: str | Path) -> bool:
    """Whether a directory is the root of a family."""
    return (Path(path) / FAMILY).is_file()


def root_above(path: Path) -> Path:
    """The root of the family that a directory belongs to, or else the directory that holds it."""
    above = path.absolute().parents
    return next((folder for folder in above[:DEPTH] if is_family(folder)), above[0])


def family_members(root: str | Path) -> list[str]:
    """Names of the members of a family, in the order they came.

    Raises:
        FormatError: There is no list, or it is damaged.
    """
    return _listed(Path(root))[0]


def family_directions(root: str | Path) -> list[Path]:
    """Directories of the directions of a family, in their order.

    Raises:
        FormatError: There is no list, or it is damaged.
    """
    return [Path(root) / TANGENT / str(number + 1) for number in range(_listed(Path(root))[1])]


def _listed(root: Path) -> tuple[list[str], int]:
    """Names of the members, and how many directions there are."""
    file = root / FAMILY
    if not file.is_file():
        raise FormatError(f"{root}: is no family, there is no {FAMILY} in it; leave out the member's name")
    try:
        if file.stat().st_size > LIST_LIMIT:
            raise FormatError(f"{file}: larger than {LIST_LIMIT} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not readable JSON: {error}") from error
    names = found.get("members") if isinstance(found, dict) and found.get("version") == VERSION else None
    if not isinstance(names, list) or not all(map(is_tensor_name, names)):
        raise FormatError(f"{file}: is no list of members of version {VERSION}")
    count = found.get("directions", 0)
    if type(count) is not int or not 0 <= count <= MOST_DIRECTIONS:
        raise FormatError(f"{file}: expected 0 to {MOST_DIRECTIONS} directions, found {str(count)[:80]}")
    return names, count


def write_members(root: Path, members: Sequence[str], directions: int = 0) -> None:
    """Replaces the list."""
    fresh = root / f".{FAMILY}.partial"
    found = {"version": VERSION, "base": BASE, "members": list(members)}
    found |= {"directions": directions} if directions else {}
    try:
        with writing(root / FAMILY):
            fresh.write_text(json.dumps(found, indent=1) + "\n")
            fresh.replace(root / FAMILY)
    finally:
        fresh.unlink(missing_ok=True)


def member_path(path: str | Path, member: str | None) -> Path:
    """Directory of a member, or `path` itself where none is named.

    Raises:
        FormatError: There is no such member, or `path` is a family and none is named.
    """
    if member is None and not is_family(path):
        return Path(path)
    known = family_members(path)
    if member not in known:
        asked = f"found {member!r}" if member else "named none (--member NAME, in Python member=NAME)"
        raise FormatError(f"{path}: is a family; expected one of its members {', '.join(known)[:300]}, {asked}")
    return Path(path) / MEMBERS / str(member)
