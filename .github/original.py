"""Cube in OGBench's own simulator, with our picture of it: pip install ogbench==1.2.2, then

    python .github/original.py train --env original --seed 1
    python .github/original.py compare

The arm, the gripper with its links, the contacts, the controller and the policy of the data are the
original's. Frames are drawn by `envs.Cube` from the positions of cube, hand and fingers, since the
original's renderer needs OpenGL. `compare` prints how both simulators answer the same actions.
"""

import math
import sys
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs  # noqa: E402
import smwm  # noqa: E402

PARTS = mujoco.mjtState.mjSTATE_INTEGRATION


class Original(envs.Cube):
    simulator = owner = None  # all instances share one simulator; the owner's state is in it

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(size=size, render_mode=render_mode)
        if Original.simulator is None:
            import ogbench  # noqa: F401, registers its environments

            env = gym.make("cube-single-v0", mode="data_collection", terminate_at_goal=False)
            Original.simulator = env.unwrapped
            Original.simulator.reset(seed=0)
        self._state = self._initial_state(np.random.default_rng(0))

    def state(self) -> np.ndarray:
        return self._state.copy()

    def _set_state(self, state: np.ndarray) -> None:
        self._state, Original.owner = state, None

    def _load(self) -> None:
        sim = self.simulator
        if Original.owner is not self:
            mujoco.mj_setState(sim._model, sim._data, self._state[12:], PARTS)
            mujoco.mj_forward(sim._model, sim._data)
            Original.owner = self

    def _read(self) -> np.ndarray:
        sim = self.simulator
        full = np.empty(mujoco.mj_stateSize(sim._model, PARTS))
        mujoco.mj_getState(sim._model, sim._data, full, PARTS)
        pads = [sim._data.body(f"ur5e/robotiq/{side}_pad").xpos for side in ("left", "right")]
        across = pads[0] - pads[1]
        opening = sim._data.qpos[sim._gripper_opening_joint_id] / 0.8
        hand = [*sim._data.site_xpos[sim._pinch_site_id], math.atan2(-across[0], across[1])]
        cube = sim._data.joint("object_joint_0").qpos
        return np.concatenate([cube, hand, [min(max(opening, 0.0), 1.0)], full])

    def _initial_state(self, rng: np.random.Generator) -> np.ndarray:
        self.simulator.reset(seed=int(rng.integers(2**31)))
        Original.owner = self
        return self._read()

    def _step(self, action: np.ndarray) -> None:
        self._load()
        sim = self.simulator
        sim.set_control(action)
        mujoco.mj_step(sim._model, sim._data, nstep=sim._n_steps)
        mujoco.mj_rnePostConstraint(sim._model, sim._data)  # contact forces, for the policy
        self._state = self._read()

    def behavior(self, rng: np.random.Generator):
        """OGBench's CubeMarkovOracle with the noise of stable-worldmodel's ExpertPolicy."""
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        sim, noise = self.simulator, rng.uniform(0, 0.1) * np.array([1, 1, 1, 3, 10])
        np.random.seed(int(rng.integers(2**31)))  # the oracle draws from it
        oracle = CubeMarkovOracle(env=sim)
        oracle.reset(None, None)

        def policy(env: "Original") -> np.ndarray:
            env._load()
            sim.pre_step()  # compute_ob_info reads what it stores
            if oracle.done:
                sim.set_new_target(return_info=False)
                oracle.reset(None, None)
            action = oracle.select_action(None, sim.compute_ob_info())
            return np.clip(action + rng.normal(0, noise), -1, 1).astype(np.float32)

        return policy


envs.ENVS["original"] = Original
smwm.PRESETS["original"] = smwm.PRESETS["cube"]
