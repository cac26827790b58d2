"""Keys, and what a refusal is on each door."""

import json

import pytest

from gwp.errors import GwpError
from serve.desk.access import Access
from serve.doors.http import STATUS, refused
from serve.refusal import RefusedError


def test_access_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_KEYS", "one, two")
    access = Access("ROBOT_KEYS")
    named = {
        access.name_of({"authorization": header})
        for header in ("Api-Key one", "api-key one", "Bearer one")
    }
    assert len(named) == 1
    assert access.name_of({"authorization": "Api-Key two"}) not in named | {None, ""}
    for header in ("Api-Key three", "Api-Key", "one", "", "Basic one", "Api-Key one, two"):
        assert access.name_of({"authorization": header}) is None
    assert access.name_of({}) is None
    assert "two" not in str(vars(access))


def test_without_a_named_variable_everyone_is_let_in_and_an_empty_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Access(None).name_of({}) == ""
    monkeypatch.setenv("ROBOT_KEYS", " , ")
    for name in ("ROBOT_KEYS", "NOT_SET_ANYWHERE"):
        with pytest.raises(GwpError, match=f"{name} is empty or not set"):
            Access(name)


def test_a_refusal_of_another_version_is_answered_too() -> None:
    response = refused(RefusedError("overheated", "try later"))
    assert (response.status_code, json.loads(bytes(response.body))) == (
        500,
        {"code": "overheated", "message": "try later"},
    )


def test_every_refusal_has_a_status() -> None:
    assert RefusedError.__doc__ is not None
    codes = RefusedError.__doc__.split("code:")[1].split("retry_after_s")[0]
    assert set(STATUS) == {code.strip() for code in codes.split(",")}
    assert all(400 <= status < 600 for status in STATUS.values())
