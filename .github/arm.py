"""Cube with an arm in the picture, seen from the original's camera: whether it matters to SIGReg.

    python .github/arm.py train --env arm --method sigreg

stable-worldmodel draws OGBench's arm, which is opaque unless observations are pixels. Here three
boxes stand for it: an upper arm and a forearm of a UR5e's lengths, and a wrist whose length is a
guess. Physics, behaviour and tasks are Cube's.
"""

import math
import sys
from pathlib import Path

import mujoco
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs  # noqa: E402
import smwm  # noqa: E402

UPPER, FORE, WRIST = 0.425, 0.392, 0.25  # m, of a UR5e; from the wrist down to the hand
SHOULDER = np.array([0, 0, 0.163])
LINK = '<body name="{}" mocap="true"><geom name="{}" type="box" size="{}" contype="0"/></body>'


class Arm(envs.Cube):
    XML = envs.Cube.XML.replace(
        "</worldbody>",
        LINK.format("upper", "upper", "0.05 0.05 0.21")
        + LINK.format("fore", "fore", "0.04 0.04 0.2")
        + LINK.format("wrist", "wrist", "0.04 0.04 0.1")
        + "</worldbody>",
    )
    COLORS = envs.Cube.COLORS | dict.fromkeys(("upper", "fore", "wrist"), (150, 150, 155))
    CAMERA, PITCH, VIEW = np.array([1.053, 0.0, 0.639]), math.radians(38.9), math.radians(45)
    HALF = math.tan(VIEW / 2)
    FORWARD = np.array([-math.cos(PITCH), 0.0, -math.sin(PITCH)])
    UP = np.array([-math.sin(PITCH), 0.0, math.cos(PITCH)])

    def render_state(self, state: np.ndarray) -> np.ndarray:
        wrist = state[7:10] + [0, 0, WRIST]
        reach = wrist - SHOULDER
        length = min(math.hypot(*reach), 0.999 * (UPPER + FORE))
        lift = math.acos((UPPER**2 + length**2 - FORE**2) / (2 * UPPER * length))
        lift += math.asin(reach[2] / math.hypot(*reach))  # of the upper arm above the horizon
        out = reach[:2] / math.hypot(*reach[:2])
        elbow = SHOULDER + UPPER * np.array([*math.cos(lift) * out, math.sin(lift)])
        ends = (SHOULDER, elbow), (elbow, wrist), (wrist, state[7:10] + [0, 0, 0.05])
        for n, (start, end) in enumerate(ends):
            self._scene.mocap_pos[n] = (start + end) / 2
            along = (end - start) / math.hypot(*(end - start))
            mujoco.mju_quatZ2Vec(self._scene.mocap_quat[n], along)
        return super().render_state(state)


envs.ENVS["arm"] = Arm
smwm.PRESETS["arm"] = smwm.PRESETS["cube"]
if __name__ == "__main__":
    sys.exit(smwm.main())
