"""Where the files of a LeRobot set lie: the templates of info.json, filled in."""

import re
from string import Formatter
from typing import Any

from gwp.data.formats.finding import Finding
from gwp.errors import DataError
from gwp.storage.names import relative_name, shown

INFO = "meta/info.json"
_NUMBER = re.compile(r"(0?\d{1,2})?d?")
_CAMERA = "video_key"
_OLD = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": ("videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
}
_NEW = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


class Places:
    """Files below a set. What info.json says counts; where there is no such file, what its
    format says.
    """

    def __init__(self, uri: str, info: dict[str, Any], files: dict[str, int], new: bool) -> None:
        """new: v3, which has files of many episodes"""
        self._uri, self._info, self._files = uri, info, files
        self._usual = _NEW if new else _OLD
        self.findings: dict[str, Finding] = {}
        # Template and camera -> whether some file lies where it says.
        self._held: dict[tuple[str, str], bool] = {}

    def of(self, template: str, chunk: int, file: int, episode: int, **more: str) -> str:
        """The file that a template gives. DataError when that is no plain relative name.

        chunk, file, episode: numbers. Both versions' names of them are known: converters keep
        the templates of the other.
        """
        fields = {"episode_chunk": chunk, "episode_index": episode}
        fields |= {"chunk_index": chunk, "file_index": file}
        usual = self._filled(template, self._usual[template], fields | more)
        # Null in sets that once had no video.
        if self._info.get(template) is None:
            return usual
        path = self._filled(template, str(self._info[template]), fields | more)
        if path in self._files or usual not in self._files or path == usual:
            return path
        # Of a set that follows its template a file is missing; another of its name is none of it.
        if self._is_followed(template, more.get(_CAMERA, "")):
            return path
        what = f"no files where {template} says; those of the format's own names are there"
        self.findings[template] = Finding(INFO, what, "repaired", "correct it for other readers")
        return usual

    def _is_followed(self, template: str, camera: str) -> bool:
        """Whether some file lies where a template of info.json says."""
        if (template, camera) not in self._held:
            parts = Formatter().parse(str(self._info[template]))
            pattern = "".join(
                re.escape(text)
                + ("" if field is None else re.escape(camera) if field == _CAMERA else r"\d+")
                for text, field, _, _ in parts
            )
            named = map(re.compile(pattern).fullmatch, self._files)
            self._held[template, camera] = any(named)
        return self._held[template, camera]

    def _filled(self, template: str, text: str, fields: dict[str, Any]) -> str:
        # A template is not ours. It may ask for attributes of what is put in, or for a width
        # that fills the memory: only the given fields are put in, as they are or as whole
        # numbers of a few digits.
        try:
            for _, field, form, conversion in Formatter().parse(text):
                if field is None:
                    continue
                if field not in fields or conversion or not _NUMBER.fullmatch(form or ""):
                    raise self._wrong(template, text, fields)
            filled = text.format(**fields)
        except ValueError as error:
            # A bracket alone, or a text that shall be written as a number.
            raise self._wrong(template, text, fields) from error
        return relative_name(filled, f"{self._uri}: {template} in {INFO}", DataError)

    def _wrong(self, template: str, text: str, fields: dict[str, Any]) -> DataError:
        return DataError(
            f"{self._uri}: {INFO} has {template} {shown(text)}; "
            f"it may hold {', '.join(fields)}, as in {{{next(iter(fields))}}}"
        )
