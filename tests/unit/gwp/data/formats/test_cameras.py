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


@pytest.mark.parametrize(
    ("cameras", "front", "left", "right"),
    [
        # ALOHA and its kin.
        ("cam_high cam_left_wrist cam_right_wrist", 0, 1, 2),
        ("cam_high cam_left_wrist cam_low cam_right_wrist", 0, 1, 3),
        ("cam_left_wrist cam_low cam_right_wrist", 1, 0, 2),
        ("overhead_cam wrist_cam_left wrist_cam_right worms_eye_cam", 0, 1, 2),
        # Open-X and DROID.
        ("exterior_image_1_left exterior_image_2_left wrist_image_left", 0, 2, 1),
        ("exterior_1_left exterior_2_left wrist_left", 0, 2, 1),
        ("varied_camera_1_left varied_camera_2_left hand_camera_left", 0, 2, 1),
        ("image_0 image_1 image_2 image_3", 0, 1, 2),
        ("hand_image image", 1, 0, None),
        ("image image_wrist", 0, 1, None),
        ("rgb_gripper rgb_static", 1, 0, None),
        ("eye_in_hand_rgb agentview_rgb", 1, 0, None),
        # robosuite: robomimic, LIBERO, RoboCasa.
        ("agentview_image robot0_eye_in_hand_image", 0, 1, None),
        ("robot0_eye_in_hand_image sideview_image frontview_image", 2, 1, 0),
        ("robot0_agentview_left robot0_agentview_right robot0_eye_in_hand", 0, 2, 1),
        ("agentview_image robot0_eye_in_hand_image robot1_eye_in_hand_image", 0, 1, 2),
        # Simulators.
        ("front_camera head_camera left_camera right_camera", 1, 2, 3),
        ("observation/front_camera/rgb observation/head_camera/rgb", 1, 0, None),
        ("vision/cam_left_wrist/colors vision/cam_head/colors", 1, 0, None),
        ("hand_camera base_camera", 1, 0, None),
        ("front left_shoulder overhead right_shoulder wrist", 0, 1, 3),
        ("corner2 gripperPOV", 0, 1, None),
        # Small arms.
        ("laptop phone", 0, 1, None),
        ("side top", 1, 0, None),
        ("wrist front", 1, 0, None),
        ("handeye fixed", 1, 0, None),
        ("wrist up", 1, 0, None),
        ("webcam", 0, None, None),
        # Humanoids and two-armed robots.
        ("cam_left_high cam_left_wrist cam_right_high cam_right_wrist", 0, 1, 3),
        ("cam_left_high cam_right_high", 0, None, 1),
        ("back_left_fisheye hand_left hand_right head", 3, 1, 2),
        ("hand_left hand_right head_center_fisheye", 2, 0, 1),
        ("camera_front camera_left camera_right camera_top", 0, 1, 2),
        ("cam_chest cam_wrist", 0, 1, None),
        ("ego_view", 0, None, None),
        ("left_wrist_view right_wrist_view ego_view", 2, 0, 1),
        ("handLeft headCamera handRight", 1, 0, 2),
        ("camera0_rgb camera1_rgb", 0, 1, None),
        ("base_0_rgb left_wrist_0_rgb right_wrist_0_rgb", 0, 1, 2),
        ("observation.images.wrist observation.images.external", 1, 0, None),
        ("observation.images.workspace observation.images.right_hand", 0, None, 1),
        ("world_camera_depth world_camera_rgb wrist_camera_rgb", 1, 2, None),
    ],
)
def test_cameras_of_public_sets(
    cameras: str, front: int, left: int | None, right: int | None
) -> None:
    names = cameras.split()
    found = default_slots(dict.fromkeys(names, COLOUR))
    wanted = {"front": front, "left": left, "right": right}
    assert found == {slot: names[i] for slot, i in wanted.items() if i is not None}
