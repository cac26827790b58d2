"""What a group of an HDF5 file holds as an episode, by names, shapes and types: nothing but its
actions, its single numbers and its instruction is read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import Any

import numpy as np

from gwp.data.formats.files.texts import whole_text
from gwp.data.formats.hdf5.file import member_at, member_of

ACTIONS = [("action",), ("actions",)]
"""Usual columns of the action, the first that is there."""
# robomimic writes the observations of the next step once more, pictures included.
_FOLLOWING = "next_obs"
_USUAL = "language_instruction"
"""Attribute or column that says what is done."""
_MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0", re.DOTALL)
"""How JPEG, PNG, WebP, TIFF and BMP begin."""
_CHANNELS = (1, 3, 4)
"""Of grey pictures, RGB and RGBA."""
_COLOURS = (3, 4)
_SIDE, _DEPTH = 16, "depth"
"""Pixels of the smallest picture that is told of, and what the path of one of depth says."""
_NUMBERS, _WIDEST = "fiub", 1 << 16
"""Kinds of numbers, and the most per row: what is wider is a map or a cloud of points."""


@dataclass
class Demo:
    """What a file says of one episode. `vectors`: rows and width; `pictures`: path, number and
    shape (None: encoded), by camera. `name`: of its group, "" for the file itself.

    scalars: single numbers, of the attributes too. texts: attributes and columns of text. told:
    what the chosen one of them says, of the episode or of each row. problem: why nothing of it
    can be used. same: path of the one that it is once more, by a link. unread: what looks like
    pictures of a kind that is not read, and which.
    """

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it could be read, and nothing is wrong."""
        return not (self.vectors or self.pictures or self.problem)

    prefix: str
    name: str = ""
    text: str = ""
    vectors: dict[str, tuple[int, int]] = field(default_factory=dict)
    pictures: dict[str, tuple[str, int, tuple[int, ...] | None]] = field(default_factory=dict)
    digest: bytes = b""
    scalars: dict[str, float] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    told: tuple[str, ...] = ()
    problem: str = ""
    same: str = ""
    unread: dict[str, str] = field(default_factory=dict)


def described(group: Any, path: str, name: str, told_by: str | None) -> Demo:
    """The episode that a group is. path: of the group, with a slash at its end; told_by:
    attribute or column that says what is done

    What h5py raises of damage, and DataError of links that lead elsewhere.
    """
    demo = Demo(path, name, text_attribute(group, _USUAL))
    _read_attributes(group, demo)
    for inner, data in datasets(group, "", ()):
        _add(demo, inner, data, group.file.attrs)
    # Recordings of one length have one size, so a file that was recorded again is told by its
    # actions.
    actions = next((member_of(group, k) for (k,) in ACTIONS if k in demo.vectors), None)
    demo.digest = b"" if actions is None else np.ascontiguousarray(actions[()]).tobytes()
    # The usual one may be a column, too.
    chosen = told_by is not None
    told_by = told_by or ("" if demo.text else _USUAL)
    if told_by in demo.texts:
        # A column says it row by row, where there is an attribute of its name, too.
        attribute = told_by in group.attrs and told_by not in group
        said = group.attrs[told_by] if attribute else member_at(group, told_by)[()]
        told = tuple(map(line, np.ravel(said)))
        # One that nobody chose costs no episode by its length.
        counts = {1, *(count for count, _ in demo.vectors.values())}
        demo.told = told if chosen or len(told) in counts else ()
    return demo


def _add(demo: Demo, path: str, data: Any, attributes: Any) -> None:
    """Note data at a path for what its shape and type say it is; what is none of it is left out.

    attributes: of the file
    """
    kind = data.dtype.kind
    # Data without any value has no shape.
    if data.shape is None:
        return
    if kind in _NUMBERS and data.shape in ((), (1,)):
        demo.scalars[path] = float(np.ravel(data[()])[0])
    if data.shape and _is_picture(data):
        demo.pictures[_camera(path, demo)] = demo.prefix + path, data.shape[0], data.shape[1:]
    elif data.shape and _encoded(path, data, attributes):
        demo.pictures[_camera(path, demo)] = demo.prefix + path, data.shape[0], None
    elif data.shape and kind in _NUMBERS:
        if what := _unread(path, data):
            demo.unread[path] = what
        width = prod(data.shape[1:])
        if data.ndim <= 2 or 0 < width <= _WIDEST:
            demo.vectors[path] = data.shape[0], width
            # An attribute of its name says less.
            if data.shape[0] != 1:
                demo.scalars.pop(path, None)
    elif _is_text(data.dtype) and prod(data.shape[1:]) == 1:
        demo.texts.append(path)


def _read_attributes(group: Any, demo: Demo) -> None:
    for key in group.attrs:
        about = group.attrs.get_id(key)
        if about.shape not in ((), (1,)):
            continue
        if about.dtype.kind in _NUMBERS:
            value = np.ravel(group.attrs[key])
            # Not so where it has a type and no value.
            if value.dtype.kind in _NUMBERS:
                demo.scalars[key] = float(value[0])
        elif _is_text(about.dtype):
            demo.texts.append(key)


def _is_text(kind: Any) -> bool:
    import h5py

    return h5py.check_string_dtype(kind) is not None


def _is_picture(data: Any) -> bool:
    """Whether each row is a picture as it is, its channels last or first."""
    if data.dtype != np.uint8 or data.ndim != 4:
        return False
    return data.shape[-1] in _CHANNELS or data.shape[1] in _CHANNELS


def _unread(path: str, data: Any) -> str:
    """Which pictures data look like that are not read as such; nothing where they look like none."""
    sides = [side for side in data.shape[1:] if side >= _SIDE]
    if len(sides) < 2 or _DEPTH in path.lower():
        return ""
    if data.ndim == 4 and data.dtype != np.uint8 and data.shape[-1] in _COLOURS:
        return f"{data.dtype} [T, H, W, {data.shape[-1]}]"
    # Of other types they are depth, mostly.
    return "uint8 [T, H, W]" if data.ndim == 3 and data.dtype == np.uint8 else ""


def datasets(group: Any, path: str, above: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Path below an episode and data of everything in it. above: the groups that `group` is in."""
    # A link may lead back to one of them.
    if group in above:
        return
    for name in group:
        inner = member_of(group, name)
        if hasattr(inner, "shape"):
            yield path + name, inner
        elif hasattr(inner, "keys") and name != _FOLLOWING:
            yield from datasets(inner, f"{path}{name}/", (*above, group))


def _camera(path: str, demo: Demo) -> str:
    name = path.removeprefix("observations/images/").removeprefix("obs/")
    # Two of one name are told apart by their paths.
    return path if name in demo.pictures else name


def _encoded(path: str, data: Any, attrs: Any) -> bool:
    """Whether each row is an encoded picture."""
    if not (data.dtype == np.uint8 and data.ndim == 2) and not (
        data.dtype.kind in "SO" and data.ndim == 1
    ):
        return False
    # ALOHA says so in an attribute; else the first picture tells that is there.
    if "/images/" in f"/{path}" and attrs.get("compress", False):
        return True
    return any(_MAGIC.match(raw[:16]) for raw in islice(_some(data), 1))


def _some(data: Any) -> Iterator[bytes]:
    """Pictures of a few rows, without those that are empty: a camera may start late."""
    n = len(data)
    rows = dict.fromkeys([*(k for k in (0, 1, 3, 10, 30, 100, 300) if k < n), n // 2, n - 1])
    raw = (raw_bytes(data[k]) for k in rows if 0 <= k < n)
    return (picture for picture in raw if picture.strip(b"\0"))


def raw_bytes(value: Any) -> bytes:
    """An encoded picture as its file has it."""
    return (
        # Rows of uint8, fixed texts (numpy cuts zeros at their end, which no JPEG or PNG
        # has), texts.
        value.tobytes()
        if isinstance(value, np.ndarray)
        else value
        if isinstance(value, bytes)
        else str(value).encode("utf-8", "surrogateescape")
    )


def text_attribute(group: Any, name: str) -> str:
    """A text among the attributes of a group, alone or as a list of one; "" where there is none."""
    value = group.attrs.get(name)
    return line(value[0] if isinstance(value, np.ndarray) and value.shape == (1,) else value)


def line(value: Any) -> str:
    """A text of a file; "" for what is none."""
    return (
        value.decode("utf-8", "replace")
        if isinstance(value, bytes)
        else whole_text(str(value))
        if isinstance(value, str)
        else ""
    )
