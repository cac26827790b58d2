"""What LIBERO's expert sees of shapes, and where it grasps them; in small scenes of MuJoCo alone."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from gwp.sim.libero.expert import CLOSE, OPEN, Expert, Hand
from gwp.sim.libero.shapes import Shapes

if find_spec("mujoco") is None:
    pytest.skip("the sim extra is not installed", allow_module_level=True)

SCENE = """
<mujoco><worldbody>
  <geom type="plane" size="2 2 .1"/>
  <body name="thing" pos=".1 0 .05"><freejoint/>
    <geom type="box" size=".05 .02 .05"/>
    <geom type="box" size=".5 .5 .5" contype="0" conaffinity="0"/>
    <body name="lid" pos="0 0 .06"><geom type="box" size=".01 .01 .01"/></body>
  </body>
  <body name="bowl" pos=".1 .6 .05"><freejoint/><geom type="cylinder" size=".055 .05"/></body>
  <body name="wall" pos=".1 .68 .2"><geom type="box" size=".3 .005 .2"/></body>
  <body name="goal" pos=".1 -.4 .01"><geom type="box" size=".05 .05 .01"/></body>
  <body name="robot0_link" pos=".1 -.2 .5"><geom type="box" size=".1 .1 .5"/></body>
</worldbody></mujoco>
"""
HAND = Hand(np.array([0.0, 0, 0.3]), np.array([0.0, 1, 0]), np.array([0.0, 0, -1]))


@pytest.fixture
def scene() -> tuple[Any, Any]:
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def test_points_are_those_of_what_can_be_touched_and_move_with_it(scene: tuple) -> None:
    import mujoco

    model, data = scene
    shapes = Shapes(model, data)
    body = model.body("thing").id
    points = shapes.points(body)
    np.testing.assert_allclose(points.min(0), [0.05, -0.02, 0], atol=1e-6)
    # With the lid, without what is only seen.
    np.testing.assert_allclose(points.max(0), [0.15, 0.02, 0.12], atol=1e-6)
    # A quarter of a turn about z, and up.
    data.qpos[:7] = (0.1, 0, 0.15, np.sqrt(0.5), 0, 0, np.sqrt(0.5))
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(shapes.points(body).min(0), [0.08, -0.05, 0.1], atol=1e-6)


def test_what_is_in_the_way_is_neither_robot_nor_thing_nor_beside_it(scene: tuple) -> None:
    model, data = scene
    shapes = Shapes(model, data)
    here, there = np.array([0.1, 0, 0.3]), np.array([0.1, -0.4, 0.3])
    thing = model.body("thing").id
    # On the way stand the thing itself, the robot, and the goal.
    assert shapes.highest(here, there, 0.03, thing) == pytest.approx(0.02)
    assert shapes.highest(here, there, 0.03, model.body("goal").id) == pytest.approx(0.12)
    assert shapes.highest(here, here, 0.03, thing) == -np.inf
    # The wall is so near only to a way that ends beside it.
    assert shapes.highest(here, np.array([0.1, 0.62, 0]), 0.03, thing) < 0.2
    assert shapes.highest(here, np.array([0.1, 0.65, 0]), 0.03, thing) == pytest.approx(0.4)


def expert_of(scene: tuple, thing: str) -> Expert:
    model, data = scene
    bodies = (model.body(name).id for name in (thing, "goal"))
    return Expert(data, Shapes(model, data), *bodies, inside=False)


def test_it_opens_turns_and_moves_towards_the_thing(scene: tuple) -> None:
    turned = Hand(HAND.place, np.array([1.0, 0, 0]), HAND.down)
    action = expert_of(scene, "thing").action(turned)
    assert action.dtype == np.float32
    assert action[6] == OPEN
    # The thing is too long for the fingers along x, so they have to turn; not to tilt.
    assert abs(action[5]) > 0.3
    np.testing.assert_allclose(action[3:5], 0, atol=1e-5)
    assert action[0] > 0.5


def test_what_is_too_wide_is_grasped_at_the_rim_away_from_the_wall(scene: tuple) -> None:
    _, data = scene
    expert = expert_of(scene, "bowl")
    expert.action(HAND)
    place = expert._grasp_now()
    middle = data.body("bowl").xpos
    radius = np.linalg.norm((place - middle)[:2])
    assert 0.04 < radius < 0.055
    # Fingers lie along the radius, and the one outside of the rim does not stand in the wall.
    assert abs((place - middle)[:2] @ expert._fingers()[:2]) == pytest.approx(radius, abs=1e-3)
    assert place[1] < middle[1] + 0.03


def test_it_closes_where_it_grasps_and_a_tilted_hand_is_put_upright(scene: tuple) -> None:
    expert = expert_of(scene, "thing")
    expert.action(HAND)
    at = Hand(expert._grasp_now(), expert._fingers(), HAND.down)
    assert expert.action(at)[6] == CLOSE
    angle = 0.2
    # Turned by +0.2 about x, so it has to be turned back.
    tilted = Hand(
        at.place,
        np.array([0, np.cos(angle), np.sin(angle)]),
        np.array([0, np.sin(angle), -np.cos(angle)]),
    )
    action = expert.action(tilted)
    assert action[3] < -0.3
    np.testing.assert_allclose(action[4:6], 0, atol=1e-5)
