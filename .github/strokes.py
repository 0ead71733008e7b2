"""Push-T with the first edition's data, short strokes, in place of sustained pushes.

    python .github/strokes.py train --env strokes --seed 1

The block's angle tells where a stroke turns, so it tells the actions. The random policy solves a
tenth of the tasks, since the block moves little in 25 steps.
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs  # noqa: E402
import smwm  # noqa: E402


class Strokes(envs.PushT):
    def behavior(self, rng: np.random.Generator):
        """Walk round the block to the nearest of six points of its outline, and hammer there.

        A stroke goes a few units deep at right angles to the side, then back. After two to five of
        them comes another point. Nothing is struck on towards a near wall."""
        right = [(60, 0), (60, 30), (15, 30), (15, 120)]
        corners = np.array([(-60, 0), *right, (-15, 120), (-15, 30), (-60, 30)], np.float64)
        edges = np.roll(corners, -1, 0) - corners
        lengths = np.abs(edges).sum(1)
        phase, strokes, wait = "walk", 0, 0  # strokes to go, steps in this phase
        point = inward = end = None  # the first two in the block's frame
        swing = depth = speed = 0.0

        def inside(place: np.ndarray) -> bool:
            return bool((np.abs(place - self.WORLD / 2) < 150).all())

        def choose(env: envs.PushT, centre: np.ndarray, turned: np.ndarray) -> None:
            nonlocal phase, strokes, wait, point, inward, swing, depth, speed
            found = []
            for edge in rng.choice(8, 20, p=lengths / lengths.sum()):
                at = corners[edge] + rng.uniform(0.05, 0.95) * edges[edge]
                normal = np.array([-edges[edge][1], edges[edge][0]]) / lengths[edge]
                if inside(centre + 100 * turned @ normal):
                    away = math.hypot(*(centre + turned @ (at - env._cog) - env._agent.position))
                    found.append((away, at, normal))
            _, point, inward = min(found[:6] or [(0, at, normal)], key=lambda place: place[0])
            phase, strokes, wait = "walk", int(rng.integers(2, 6)), 0
            swing, depth, speed = rng.uniform(25, 60), rng.uniform(4, 14), rng.uniform(0.3, 0.7)

        def policy(env: envs.PushT) -> np.ndarray:
            nonlocal phase, strokes, wait, end
            agent, turned = np.array(env._agent.position), env._rotation(env._block.angle)
            centre = np.array(env._block.position) + turned @ env._cog
            if strokes <= 0:
                choose(env, centre, turned)
            n = turned @ inward
            contact = centre + turned @ (point - env._cog) - env.AGENT_RADIUS * n
            start = goal = contact - swing * n
            pace, wait = speed, wait + 1
            if phase == "walk":  # round the block on a circle, then straight to the start
                here, there = (math.atan2(*(p - centre)[::-1]) for p in (agent, start))
                angle, pace = math.remainder(there - here, 2 * math.pi), 0.5
                if abs(angle) > 0.5:
                    angle = here + math.copysign(min(abs(angle), 0.7), angle)
                    goal = centre + 115 * np.array([math.cos(angle), math.sin(angle)])
                goal = np.clip(goal, 20, env.WORLD - 20)
                if wait > 25:
                    strokes = 0
            elif phase == "strike":
                goal = end
                if (goal - agent) @ n < 6 or wait > 12:
                    phase, wait = "back", 0
            arrived = math.hypot(*(start - agent)) < (12 if phase == "walk" else 8)
            if phase != "strike" and (arrived or (phase == "back" and wait > 12)):
                strokes -= phase == "back"
                phase, wait, end = "strike", 0, contact + depth * n
                if not inside(centre + 30 * n) and n @ (centre - env.WORLD / 2) > 0:
                    strokes = 0
            action = (goal - agent) / max(0.4 * env.ACTION, math.hypot(*(goal - agent)) / pace)
            return np.clip(action + rng.normal(0, 0.03, 2), -1, 1).astype(np.float32)

        return policy


envs.ENVS["strokes"] = Strokes
smwm.PRESETS["strokes"] = smwm.PRESETS["pusht"]
if __name__ == "__main__":
    sys.exit(smwm.main())
