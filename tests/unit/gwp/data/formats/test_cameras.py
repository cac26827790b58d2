"""Which camera is taken for which slot where nobody says it."""

from typing import Any

import pytest

from gwp.data.formats.cameras import colour_cameras, default_slots

COLOUR: dict[str, Any] = {"shape": [48, 64, 3]}


@pytest.mark.parametrize(
    ("cameras", "wanted"),
    [
        # Left hand first, as sorting by name puts it.
        (
            ["cam_left_wrist", "cam_right_wrist", "cam_high"],
            "cam_high cam_left_wrist cam_right_wrist",
        ),
        (["right_hand", "left_hand", "head"], "head left_hand right_hand"),
        (["wrist_image", "image"], "image wrist_image"),
        (
            ["robot0_eye_in_hand_image", "agentview_image"],
            "agentview_image robot0_eye_in_hand_image",
        ),
        (
            ["wrist_image_left", "exterior_image_1_left"],
            "exterior_image_1_left wrist_image_left",
        ),
        (
            ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"],
            "base_0_rgb left_wrist_0_rgb right_wrist_0_rgb",
        ),
        # Names that say nothing: the order of the set.
        (["laptop", "phone", "b"], "laptop phone b"),
        (
            ["observation.images.top", "observation.images.side"],
            "observation.images.top observation.images.side",
        ),
        (["left_wrist"], "left_wrist"),
        (["image", "depth_image"], "image"),
    ],
)
def test_names_come_before_the_order(cameras: list[str], wanted: str) -> None:
    found = default_slots(dict.fromkeys(cameras, COLOUR))
    assert " ".join(found.values()) == wanted
    assert list(found) == ["front", "left", "right"][: len(found)]


def test_two_hands_without_a_front_keep_their_sides() -> None:
    found = default_slots(dict.fromkeys(["right_wrist", "left_wrist"], COLOUR))
    assert found == {"left": "left_wrist", "right": "right_wrist"}


@pytest.mark.parametrize(
    "about",
    [
        {"dtype": "video", "info": {"video.is_depth_map": True}},
        {"dtype": "video", "video_info": {"is_depth_map": True}},
        {"dtype": "uint16"},
        {"dtype": "float32", "shape": [48, 64, 3]},
        {"shape": [48, 64, 1]},
        {"shape": [1, 48, 64]},
        {"shape": {"dimensions": ["48", "64", "1"]}},
    ],
)
def test_depth_is_no_view(about: dict[str, Any]) -> None:
    assert colour_cameras({"d": about, "c": COLOUR}) == ["c"]
    assert default_slots({"d": about, "c": COLOUR}) == {"front": "c"}


@pytest.mark.parametrize("about", [{}, {"info": None}, {"shape": None}, {"shape": [3, 48, 64]}])
def test_what_says_nothing_of_depth_is_a_view(about: dict[str, Any]) -> None:
    assert colour_cameras({"c": about}) == ["c"]
