"""Cube with its former data: grasps in phases instead of the rules of `envs.Cube.behavior`.

    python .github/grasps.py train --env grasps --seed 1

The hand moves at a speed of its own in every episode, a few grasps fail on purpose, and the hand
wanders about between them. Episodes have 100 steps.
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs  # noqa: E402
import smwm  # noqa: E402


class Grasps(envs.Cube):
    XML = envs.Cube.XML.replace(  # Cube's former fingers, with a filter of their targets
        '<position kp="750" kv="90"/>',
        '<position kp="750" kv="25" forcerange="-15 15" timeconst="0.2"/>',
    )

    def behavior(self, rng: np.random.Generator):
        """Pick the cube up, carry it to a random place, put it down, wander about, and again. A few
        grasps go wrong, since the data should show that the cube does not always come along."""
        noise, speed = rng.uniform(0, 0.1), rng.uniform(0.2, 0.45)
        plan = {"phase": "above"}

        def draw() -> None:
            plan.update(
                wait=0,  # steps in this phase
                place=rng.uniform(self.CUBE_LOW, self.CUBE_HIGH),  # where the cube goes
                hover=rng.uniform([*self.LOW[:2], 0.12], self.HIGH),  # where the hand goes then
                height=rng.uniform(0.06, 0.3),  # of the carrying
                yaw=rng.uniform(-1.5, 1.5),  # to turn by while carrying
                rest=int(rng.integers(0, 12)),  # steps of wandering, at least
                grip=rng.choice([-1.0, 1.0]),  # fingers while wandering
                offset=np.append(rng.normal(0, 0.005, 2), 0),  # from the cube to the grasp
                hold=int(rng.integers(2, 10)),  # steps of closing
                close=-1.0 if rng.random() < 0.03 else 1.0,  # the fingers stay open, or grasp
            )

        draw()

        def policy(env: envs.Cube) -> np.ndarray:
            cube, (w, *_, z), hand = (env._data.qpos[a:b] for a, b in ((0, 3), (3, 7), (7, 10)))
            align = math.remainder(2 * math.atan2(z, w) - env._data.qpos[10], math.pi / 2)
            aim, phase = cube + plan["offset"], plan["phase"]
            target, turn, close = aim.copy(), align, -1.0
            plan["wait"] += 1
            near = math.hypot(*(hand - aim)[:2])
            if phase == "above":
                target[2] = max(cube[2] + 0.07, 0.1) if near > 0.02 else cube[2] + 0.05
                done = near < 0.008 and hand[2] < cube[2] + 0.08 and abs(align) < 0.15
            elif phase == "down":
                target[2], done = max(cube[2], 0.02), hand[2] < cube[2] + 0.008
            elif phase == "close":
                close, done = plan["close"], plan["wait"] > plan["hold"]
            elif phase == "lift":
                target, close = np.append(hand[:2], plan["height"]), plan["close"]
                done = hand[2] > plan["height"] - 0.02
            elif phase == "carry":
                target, close = np.append(plan["place"], plan["height"]), plan["close"]
                turn, done = plan["yaw"], math.hypot(*(hand[:2] - plan["place"])) < 0.02
                plan["yaw"] -= math.copysign(min(abs(turn), 0.3), turn)
            elif phase == "lower":
                target, close = np.append(plan["place"], 0.022), plan["close"]
                turn, done = 0.0, cube[2] < 0.026
            elif phase == "open":
                target, turn, done = hand.copy(), 0.0, plan["wait"] > 4
            else:  # retreat, and wander about
                high = hand[2] > 0.1
                target = plan["hover"] if high else np.append(hand[:2], 0.2)
                close = plan["grip"] if high else -1.0
                turn = math.remainder(plan["yaw"] - env._data.qpos[10], math.pi)
                done = high and plan["wait"] > plan["rest"]
            away = math.sqrt(((hand - cube) ** 2).sum()) > 0.04
            lost = phase in ("lift", "carry", "lower") and rng.random() < (0.15 if away else 0.02)
            if done or lost or plan["wait"] > 60:
                order = ["above", "down", "close", "lift", "carry", "lower", "open", "retreat"]
                following = order[(order.index(phase) + 1) % 8] if done and not lost else "retreat"
                if following == "above" or lost:
                    draw()
                plan.update(phase=following, wait=0)
            action = np.append((target - hand) / 0.05, [turn / 0.3, close])
            action[:4] = np.clip(action[:4], -speed, speed) + rng.normal(0, noise, 4)
            action[4] += rng.normal(0, 10 * noise)
            return np.clip(action, -1, 1).astype(np.float32)

        return policy


envs.ENVS["grasps"] = Grasps
smwm.PRESETS["grasps"] = smwm.PRESETS["cube"] | {"episode": 100}

if __name__ == "__main__":
    sys.exit(smwm.main())
