"""Options of verbs that describe a set of recordings, and the source that they make."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gwp.data.source import Source


class _FormatNames(Sequence[str]):
    """Names of the table of formats, which is imported when one is asked for: other verbs start
    faster without.
    """

    def __getitem__(self, index: Any) -> Any:
        # argparse asks by `in` and, for the help, by iteration; a Sequence sends both here.
        from gwp.data.formats.table import format_names

        return format_names()[index]

    def __len__(self) -> int:
        return len(self[:])


class Options(Protocol):
    """A parser, or a group of its options."""

    def add_argument(self, *names: str, **options: Any) -> Any:
        """As of `argparse`."""


def add_source_options(parser: Options) -> None:
    """What a set does not say of itself, as in a source of a stage file."""
    parser.add_argument(
        "--format",
        choices=_FormatNames(),
        default="auto",
        metavar="FORMAT",
        help="what lies there: %(choices)s (default: auto)",
    )
    parser.add_argument(
        "--fps", type=float, help="rate of a set that does not state it (ALOHA HDF5, RLDS), Hz"
    )
    parser.add_argument(
        "--colours",
        default="rgb",
        metavar="ORDER",
        help="bgr: red and blue of its pictures are exchanged, as OpenCV writes RGB arrays; of "
        "some cameras: KEY=bgr,...",
    )
    parser.add_argument("--split", help="split of a set that has several")
    parser.add_argument(
        "--instruction",
        metavar="COLUMN",
        help="column, or text of each episode, that says what is done (default: the usual one)",
    )
    parser.add_argument(
        "--only",
        metavar="COLUMN",
        help="only episodes whose last value in this column, or number of this name, is true",
    )
    parser.add_argument(
        "--state",
        metavar="COLUMNS",
        help="columns that make up the state, comma-separated (default: the usual ones)",
    )
    parser.add_argument(
        "--action", metavar="COLUMNS", help="columns that make up the action, comma-separated"
    )
    parser.add_argument(
        "--cameras",
        metavar="SLOT=KEY,...",
        help="camera of each slot, e.g. front=top,left=wrist (default: those of the set)",
    )


def source_of(args: argparse.Namespace, uri: str, **more: Any) -> "Source":
    """The source that the options describe. GwpError when one of them is none.

    more: other fields of the source.
    """
    # Imported here: parsers of the verbs are built without pydantic.
    from pydantic import ValidationError

    from gwp.data.source import Source
    from gwp.errors import GwpError

    names = ("format", "colours", "fps", "split", "instruction", "only")
    fields = {"uri": uri, **{name: getattr(args, name) for name in names}} | more
    if "=" in args.colours:
        pairs = [part.partition("=") for part in args.colours.split(",")]
        fields["colours"] = {key.strip(): order.strip() for key, _, order in pairs}
    for name in ("state", "action"):
        columns = getattr(args, name)
        if columns:
            fields[name] = tuple(columns.split(","))
    if args.cameras:
        pairs = [part.partition("=") for part in args.cameras.split(",")]
        named = {slot.strip(): key.strip() for slot, _, key in pairs}
        if not all(named) or not all(named.values()) or len(named) < len(pairs):
            raise GwpError(f"--cameras {args.cameras}: write front=KEY,left=KEY,right=KEY")
        fields["cameras"] = named
    try:
        return Source.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        # An option is called as its field.
        option = ".".join(map(str, first["loc"]))
        raise GwpError(f"--{option}: {first['msg'].removeprefix('Value error, ')}") from error
