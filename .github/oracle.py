"""Cube with data like the paper's: grasps by the rules of OGBench's CubeMarkovOracle.

    python .github/oracle.py train --env oracle --seed 1

stable-worldmodel's script collects the data so, with a new place for the cube whenever the last
is reached, and noise of a deviation that each episode draws from [0, 0.1] (yaw 3, opening 10 times
as much). The original's arm lags with a time constant of 0.2 s: a full action, 5 cm, moves its hand
by 1.1 cm. The carriage here hardly lags, so actions are scaled by 0.3, which moves it by 1.2 cm.
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs  # noqa: E402
import smwm  # noqa: E402

SPEED, SUBTASK = 0.3, 200  # share of a full action; steps after which the cube's place changes


class Oracle(envs.Cube):
    def behavior(self, rng: np.random.Generator):
        """Fetch the cube, carry it to its place, open, leave it, and again with another place.

        What to do follows from the state alone, so a slip is mended by another grasp. The hand goes
        at full speed and oscillates about its targets."""
        noise, steps = rng.uniform(0, 0.1), SUBTASK
        place = rest = None  # where the cube goes, then the hand: x, y, z, yaw
        over, height, spread = np.array([0, 0, 0.18]), 0.16, np.array([1, 1, 1, 3])  # m, m, 1

        def policy(env: envs.Cube) -> np.ndarray:
            nonlocal steps, place, rest
            if steps == SUBTASK:
                yaws = rng.uniform(-math.pi, math.pi, 2)
                place = np.array([*rng.uniform(self.CUBE_LOW, self.CUBE_HIGH), self.CUBE, yaws[0]])
                rest = np.append(rng.uniform([*self.LOW[:2], 0.2], self.HIGH), yaws[1])
                steps = 0
            steps += 1
            cube, (w, *_, z), hand = (env._data.qpos[a:b] for a, b in ((0, 3), (3, 7), (7, 10)))
            yaw, pairs = env._data.qpos[10], env._data.contact.geom
            to_cube = math.remainder(2 * math.atan2(z, w) - yaw, math.pi / 2)
            to_place = math.remainder(place[3] - yaw, math.pi / 2)
            # Geom 0 is the table, 1 the cube: how many fingers touch the cube?
            fingers = len({*pairs[(pairs == 1).any(1)].flat} - {0, 1})
            high, near = hand[2] > height, np.linalg.norm(cube - hand) <= 0.02
            turn, close = to_place - to_cube, 1.0
            if np.linalg.norm(place[:3] - cube) > 0.02:
                if not (near and fingers == 2):  # fetch it
                    above = np.linalg.norm((cube - hand)[:2]) > 0.04
                    target, turn, close = cube + above * over, to_cube, 1.0 if near else -1.0
                elif np.linalg.norm((place[:3] - cube)[:2]) <= 0.04:
                    target = place[:3]
                else:  # lift it, then carry it
                    target = place[:3] + over if high else np.append(cube[:2], 2 * over[2])
            elif fingers:  # open them
                target, close = place[:3], -1.0
            else:  # leave it
                target = rest[:3] if high else np.append(cube[:2], 2 * height)
                turn, close = rest[3] - yaw, -1.0
                if np.linalg.norm(rest[:3] - hand) <= 0.04:
                    steps = SUBTASK
            way = target - hand
            way *= 5 * max(1.0, 0.4 / (np.linalg.norm(way) + 1e-6))
            move = np.clip([*way, 3 * turn], -1, 1) + rng.normal(0, noise * spread)
            action = np.append(SPEED * np.clip(move, -1, 1), close + rng.normal(0, 10 * noise))
            return np.clip(action, -1, 1).astype(np.float32)

        return policy


envs.ENVS["oracle"] = Oracle
smwm.PRESETS["oracle"] = smwm.PRESETS["cube"] | {"episode": 200}

if __name__ == "__main__":
    sys.exit(smwm.main())
