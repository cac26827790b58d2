"""What is on disk of a study: which pieces are done, which are stale, which broke.

A result says what made it (`hash`); another one at its place is stale, and made anew.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gwp import storage
from gwp.errors import MissingError
from pipelines.studies.cells.pieces import Cell, Control, Piece, StudyPlan
from pipelines.studies.document.judgements import Judgement

DONE, FAILED = "done", "failed"
_REASON = 400


def result_uri(plan: StudyPlan, piece: Piece) -> str:
    """Where the result of a piece stands when it is there."""
    if isinstance(piece, Control):
        return storage.join(plan.root, "controls", f"{piece.id}.json")
    name = f"cells/{piece.id}" if isinstance(piece, Cell) else piece.id
    return storage.join(plan.root, name, "result.json")


def judged_uri(plan: StudyPlan, cell: Cell, judgement: Judgement) -> str:
    """Where a judgement of a cell stands when it is there."""
    return storage.join(plan.root, "cells", cell.id, "judged", f"{judgement.name}.json")


def read(uri: str) -> dict[str, Any] | None:
    """A result; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(uri))
    except MissingError:
        return None
    return found


def write(uri: str, made_by: str, figures: Mapping[str, Any], state: str = DONE) -> None:
    """Put a result at its place, whole or not at all. made_by: the hash of all that made it"""
    whole = {"hash": made_by, "state": state, **figures}
    storage.write_bytes(uri, json.dumps(whole, indent=1).encode())


def reason_of(error: BaseException) -> str:
    """Why something broke, in one line."""
    text = " ".join(str(error).split())[:_REASON]
    return text or type(error).__name__


def done(result: Mapping[str, Any] | None, made_by: str) -> bool:
    """Whether a result is there, whole and of what is asked now."""
    return result is not None and result["state"] == DONE and result["hash"] == made_by


@dataclass
class Standing:
    """What there is of a study.

    pieces: id -> result; judged: cell -> judgement -> result; both of what is asked now alone
    stale: pieces and judgements that another document made
    """

    pieces: dict[str, dict[str, Any]] = field(default_factory=dict)
    judged: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)

    def finished(self, name: str) -> bool:
        """Whether a piece is done."""
        return self.pieces.get(name, {}).get("state") == DONE

    def broken(self) -> dict[str, str]:
        """Piece, or cell and judgement -> why it is not there."""
        found = {
            name: result["error"]
            for name, result in self.pieces.items()
            if result["state"] == FAILED
        }
        for cell, judged in self.judged.items():
            found |= {
                f"{cell} {name}": result["error"]
                for name, result in judged.items()
                if result["state"] == FAILED
            }
        return found


def standing(plan: StudyPlan) -> Standing:
    """Look at everything that a plan asks for."""
    found = Standing()
    for piece in plan.pieces.values():
        result = read(result_uri(plan, piece))
        if result is None:
            continue
        if result["hash"] != piece.hash:
            found.stale.append(piece.id)
            continue
        found.pieces[piece.id] = result
    for cell in plan.cells.values():
        found.judged[cell.id] = {}
        for judgement in plan.study.judge:
            result = read(judged_uri(plan, cell, judgement))
            if result is None or not judgement.of(cell.arm):
                continue
            if result["hash"] == plan.judgement_hash(cell, judgement):
                found.judged[cell.id][judgement.name] = result
            elif cell.id not in found.stale:
                found.stale.append(f"{cell.id} {judgement.name}")
    return found
