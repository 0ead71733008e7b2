"""Five pixel environments for sensorimotor world models: they step, draw, save and restore.

    env = gym.make("smwm/DotWorld-v0")          # after `import envs`
    obs, info = env.reset(seed=0)               # obs: (64, 64, 3) uint8; info: state, success
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

Every environment is a `gymnasium.Env` that observes its own picture, drawn in numpy: no OpenGL, no
display, no GPU, the same bytes on every machine. On top of Gymnasium's interface each has `state`,
`set_state`, `render_state`, `is_success`, `probe_targets` and `behavior` (see `PixelEnv`). To take
one environment elsewhere, copy its class, `PixelEnv` and, for the two-dimensional ones, `Canvas`.
"""

import itertools
import math

import gymnasium as gym
import mujoco
import numpy as np
import pymunk

# ------------------------------------------------------------------------------------------------
# Base class and canvas
# ------------------------------------------------------------------------------------------------


class PixelEnv(gym.Env):
    """What the five environments share.

    The observation is a (size, size, 3) uint8 frame, the action a float vector in [-1, 1]^m (values
    outside are clipped). `reset(options={"state": s, "goal": g})` starts at state s and judges
    against the state g; without a goal, `success` is False, the reward 0 and no episode ends.

    A subclass has `controlled`, the names of the probe targets that the action moves, and writes

        state() -> (d,) float64             all that the next steps depend on
        _set_state(state)                   restore a checked state
        _initial_state() -> (d,)            a random start, drawn from self.np_random
        _step(action)                       advance by a checked and clipped action
        render_state(state) -> frame        the picture of a state, a pure function of it
        is_success(state, goal) -> bool     the published criterion
        probe_targets(states (n, d))        name -> (n, j): what a latent should hold
        behavior(rng) -> policy             data collection for one episode, policy(env) -> action

    Raises ValueError on an action, a state or a goal of wrong shape or with NaN, and on an unknown
    option; the message says what was expected and what came.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    VARIANTS: dict[str, dict] = {"default": {}}  # name -> constructor arguments
    goal = None

    def __init__(self, action_dim: int, *, size: int = 64, render_mode: str | None = None):
        if not (isinstance(size, int | np.integer) and size >= 8):
            raise ValueError(f"size: expected a whole number of pixels, 8 or more, got {size!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode: expected 'rgb_array' or None, got {render_mode!r}")
        self.size, self.render_mode = int(size), render_mode
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    def set_state(self, state: np.ndarray) -> None:
        """Restore a state that `state()` gave, exactly."""
        self._set_state(self._checked(state, "state", self.state().shape))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"state", "goal"}:
            raise ValueError(f"reset options: expected 'state' and 'goal', got {sorted(unknown)}")
        state, goal = options.get("state"), options.get("goal")
        if goal is not None:
            goal = self._checked(goal, "goal", self.state().shape)
        self.set_state(self._initial_state() if state is None else state)
        self.goal = goal
        info = self._info()
        return self.render_state(info["state"]), info

    def step(self, action: np.ndarray):
        info = self.advance(action)
        return (
            self.render_state(info["state"]),
            float(info["success"]),
            info["success"],
            False,
            info,
        )

    def advance(self, action: np.ndarray) -> dict:
        """`step` without the picture; returns its info."""
        checked = self._checked(action, "action", self.action_space.shape)
        checked = action if getattr(action, "dtype", None) == np.float32 else checked
        self._step(np.clip(checked, -1.0, 1.0))
        return self._info()

    def render(self) -> np.ndarray | None:
        return self.render_state(self.state()) if self.render_mode == "rgb_array" else None

    def _info(self) -> dict:
        state = self.state()
        success = self.goal is not None and bool(self.is_success(state, self.goal))
        return {"state": state, "success": success}

    def _checked(self, value, name: str, shape: tuple[int]) -> np.ndarray:
        value = np.asarray(value, dtype=np.float64)
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: expected finite numbers, got {value}")
        return value


class Canvas:
    """A size x size picture of the square [0, world]^2, y down, painted with smooth edges.

    A pixel's coverage is 1/2 - d, cut to [0, 1], where d is its centre's signed distance to the
    shape in pixels; only the pixels of a shape's bounding box are touched.
    """

    def __init__(self, size: int, world: float, background: int | np.ndarray = 255):
        self.frame = np.empty((size, size, 3), np.uint8)
        self.frame[...] = background  # a shade of grey, or a picture to paint over
        self.scale = size / world

    def disc(self, centre, radius: float, color) -> None:
        def distance(x, y):
            return np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2) - radius

        self._paint(distance, [centre], radius, color)

    def capsule(self, a, b, radius: float, color) -> None:
        """All points within `radius` of the segment from a to b."""
        (ax, ay), (dx, dy) = a, (b[0] - a[0], b[1] - a[1])
        length2 = max(dx * dx + dy * dy, 1e-12)

        def distance(x, y):
            t = np.clip(((x - ax) * dx + (y - ay) * dy) / length2, 0.0, 1.0)
            return np.sqrt((x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2) - radius

        self._paint(distance, [a, b], radius, color)

    def polygon(self, vertices, color) -> None:
        """A convex polygon: the intersection of the half planes of its edges."""
        vertices = np.asarray(vertices, dtype=np.float64)  # (n, 2)
        edges = vertices[[*range(1, len(vertices)), 0]] - vertices
        turn = edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0]  # its sign: which way round
        normals = edges[:, ::-1] * ((1, -1) if turn > 0 else (-1, 1))  # pointing outwards
        normals = (normals / np.sqrt((normals * normals).sum(1, keepdims=True)))[..., None, None]
        offsets = normals[:, 0] * vertices[:, :1, None] + normals[:, 1] * vertices[:, 1:, None]

        def distance(x, y):
            return (normals[:, 0] * x + normals[:, 1] * y - offsets).max(0)

        self._paint(distance, vertices.tolist(), 0.0, color)

    def _paint(self, distance, points, margin: float, color) -> None:
        size, scale, bounds = len(self.frame), self.scale, []
        for values in zip(*points, strict=True):  # the box in pixels: x, then y
            low = math.floor((min(values) - margin) * scale - 1)
            high = math.ceil((max(values) + margin) * scale + 1)
            bounds.append((min(max(low, 0), size), min(max(high, 0), size)))
        (x0, x1), (y0, y1) = bounds
        x = np.arange(x0 + 0.5, x1) / scale
        y = np.arange(y0 + 0.5, y1)[:, None] / scale
        cover = (0.5 - scale * distance(x, y)).clip(0.0, 1.0)[..., None]
        patch = self.frame[y0:y1, x0:x1]
        patch[...] = np.rint(patch + cover * (np.asarray(color, np.float64) - patch))


# ------------------------------------------------------------------------------------------------
# DotWorld
# ------------------------------------------------------------------------------------------------


class DotWorld(PixelEnv):
    """
    ## Description
    The paper's toy testbed: coloured dots of radius 2 px on a white 64 x 64 canvas, or one arrow of
    16 px with a pose, turning about its shaft (the sprite world). What the action moves should be
    kept by a sensorimotor latent; what moves on its own should be dropped. All dots stay inside the
    canvas and do not overlap: a displacement is cut at the border, and a move that would end on
    another dot does not happen.

    ## Action Space
    `Box(-1, 1, (m,), float32)`, displacements in units of 16 px (the sprite's: 4 px and 1.0 rad;
    what moves on its own: 16 px and pi rad). Two entries (x, y) for each independent dot, two for
    each coupled pair, then none for random and static dots; for the sprite one entry for each
    letter of `sprite` ("x", "xy", "xyt"; "none" has one entry that moves nothing, since an action
    space cannot be empty).

    ## Observation Space
    `Box(0, 255, (size, size, 3), uint8)`: the frame; y points down.

    ## Rewards
    1 on a step that reaches the goal, else 0.

    ## Starting State
    Dots uniform in [2, 62] px without overlap, the second of a pair within 16 px of the first in x
    and in y; sprite: x, y uniform in [16, 48] px, angle uniform in [-pi, pi].

    ## Episode End
    At the goal: every controlled dot within 2 px (a controlled angle within 0.1 rad).

    ## Arguments
    * `independent=1`: dots with a displacement of their own in the action.
    * `coupled=0`: pairs of dots that share one displacement.
    * `random=0`: distractors that move by displacements of their own, not in the action.
    * `static=0`: dots that never move.
    * `sprite=None`: "none", "x", "xy" or "xyt" for the arrow instead of dots; the coordinates that
      are not named move at random.
    * `size=64`: side of the frame in pixels.

    State: (x, y) of each dot in the order above, or (x, y, angle); then, where anything moves at
    random, the key of its next displacement (a whole number below 2^53).
    """

    CANVAS, RADIUS, REACH = 64.0, 2.0, 16.0  # px
    SPRITE_RADIUS, SPRITE_REACH, TURN = 16.0, 4.0, 1.0  # px, px, rad
    GOAL_DISTANCE, GOAL_ANGLE = 2.0, 0.1  # px, rad
    COLORS = [(214, 39, 40), (31, 119, 180), (44, 160, 44), (255, 127, 14), (148, 103, 189)]
    VARIANTS = {
        "single": {},
        "independent2": {"independent": 2},
        "coupled": {"independent": 0, "coupled": 1},
        "distractor": {"random": 1},
        "static": {"static": 1},
        "combined": {"independent": 2, "coupled": 1, "random": 1},
        "sprite-none": {"sprite": "none"},
        "sprite-x": {"sprite": "x"},
        "sprite-xy": {"sprite": "xy"},
        "sprite-xyt": {"sprite": "xyt"},
    }

    def __init__(
        self,
        independent: int = 1,
        coupled: int = 0,
        random: int = 0,
        static: int = 0,
        sprite: str | None = None,
        *,
        size: int = 64,
        render_mode: str | None = None,
    ):
        if sprite not in (None, "none", "x", "xy", "xyt"):
            raise ValueError(f"sprite: expected None, 'none', 'x', 'xy' or 'xyt', got {sprite!r}")
        counts = {"dot": independent, "pair": coupled, "random": random, "static": static}
        if min(counts.values()) < 0 or (sprite is None and independent + coupled < 1):
            raise ValueError(f"dots: expected at least one controlled dot, got {counts}")
        self.sprite = sprite
        # A group is what moves or is blocked together: its name and, for each of its displacement
        # entries, the coordinates of the state that this entry moves.
        groups = []
        if sprite is not None:
            groups = [(name, [[i]]) for i, name in enumerate(("x", "y", "angle"))]
            free = {"none": "", "x": "x", "xy": "xy", "xyt": ("x", "y", "angle")}[sprite]
            self.dots, self.coordinates = 0, 3
        else:
            first = 0
            for kind, count in counts.items():
                for n in range(count):
                    dots = [first, first + 1] if kind == "pair" else [first]
                    groups.append(
                        (f"{kind} {n + 1}", [[2 * d + axis for d in dots] for axis in (0, 1)])
                    )
                    first += len(dots)
            free = [name for name, _ in groups if name.startswith(("dot", "pair"))]
            self.dots, self.coordinates = first, 2 * first
        self._groups = groups
        self._moved = [entries for name, entries in groups if name in free]
        self._random = [
            entries
            for name, entries in groups
            if name not in free and not name.startswith("static")
        ]
        self.controlled = tuple(  # the probe targets that the action moves
            target
            for name in free
            for target in (("sin angle", "cos angle") if name == "angle" else (name,))
        )
        margin = self.RADIUS if sprite is None else self.SPRITE_RADIUS
        self._low = np.full(self.coordinates, margin)
        self._high = np.full(self.coordinates, self.CANVAS - margin)
        self._reach = np.full(self.coordinates, self.REACH)
        if sprite is not None:
            self._low[2], self._high[2] = -np.inf, np.inf
            controlled = np.array([name in free for name, _ in groups])
            here, away = (self.SPRITE_REACH,) * 2 + (self.TURN,), (self.REACH,) * 2 + (math.pi,)
            self._reach = np.where(controlled, here, away)
        self._position, self._key = np.zeros(self.coordinates), 0
        super().__init__(max(sum(map(len, self._moved)), 1), size=size, render_mode=render_mode)

    def state(self) -> np.ndarray:
        key = [float(self._key)] if self._random else []
        return np.concatenate([self._position, key])

    def _set_state(self, state: np.ndarray) -> None:
        self._position = state[: self.coordinates].copy()
        self._key = int(state[-1]) if self._random else 0

    def _initial_state(self) -> np.ndarray:
        rng, n = self.np_random, self.coordinates
        if self.sprite is not None:
            low, high = np.append(self._low[:2], -math.pi), np.append(self._high[:2], math.pi)
            position = rng.uniform(low, high)
        else:
            position = np.full(n, np.nan)
            for name, entries in self._groups:
                for dot in np.transpose(entries):  # (dots of the group, 2) coordinates
                    low, high = self._low[dot], self._high[dot]
                    if name.startswith("pair") and dot[0] != entries[0][0]:
                        partner = position[np.transpose(entries)[0]]
                        low = np.maximum(low, partner - self.REACH)
                        high = np.minimum(high, partner + self.REACH)
                    while np.isnan(position[dot[0]]) or self._overlapping(position[: dot[1] + 1]):
                        position[dot] = rng.uniform(low, high)
        key = [float(rng.integers(2**53))] if self._random else []
        return np.concatenate([position, key])

    def _step(self, action: np.ndarray) -> None:
        position, start = self._position, 0
        for entries in self._moved:
            position = self._move(position, entries, action[start : start + len(entries)])
            start += len(entries)
        if self._random:
            rng = np.random.default_rng(self._key)
            for entries in self._random:
                position = self._move(position, entries, self._draw(rng, position, entries))
            self._key = int(rng.integers(2**53))
        self._position = position

    def _move(self, position: np.ndarray, entries, displacement) -> np.ndarray:
        """The position after one group's displacement, cut at the border; unchanged if blocked."""
        moved = position.copy()
        for coords, d in zip(entries, displacement, strict=True):
            d = d * self._reach[coords[0]]
            d = max(d, max(self._low[c] - position[c] for c in coords))
            d = min(d, min(self._high[c] - position[c] for c in coords))
            for c in coords:
                moved[c] = position[c] + d
        if self.sprite is not None:
            moved[2] = math.remainder(moved[2], 2 * math.pi)
        return position if self._overlapping(moved) else moved

    def _draw(self, rng: np.random.Generator, position: np.ndarray, entries) -> list[float]:
        """A displacement in [-1, 1], uniform among those that stay inside and are not blocked."""
        low, high = [], []
        for coords in entries:
            reach = self._reach[coords[0]]
            low.append(max(-1.0, max(self._low[c] - position[c] for c in coords) / reach))
            high.append(min(1.0, min(self._high[c] - position[c] for c in coords) / reach))
        for _ in range(20):
            displacement = [
                rng.uniform(a, b) if a < b else a for a, b in zip(low, high, strict=True)
            ]
            if self._move(position, entries, displacement) is not position:
                return displacement
        return [0.0] * len(entries)

    def _overlapping(self, position: np.ndarray) -> bool:
        if self.dots < 2:
            return False
        dots = position.reshape(-1, 2)
        distance = ((dots[:, None] - dots[None]) ** 2).sum(-1)
        return bool((distance[np.triu_indices(len(dots), 1)] < (2 * self.RADIUS) ** 2).any())

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas = Canvas(self.size, self.CANVAS)
        if self.sprite is not None:
            c, s = math.cos(state[2]), math.sin(state[2])
            head = [(1, 0), (0.1, -0.8), (0.1, 0.8)]
            shaft = [(0.1, -0.3), (-0.5, -0.3), (-0.5, 0.3), (0.1, 0.3)]
            for part, color in ((head, self.COLORS[0]), (shaft, self.COLORS[1])):
                corners = self.SPRITE_RADIUS * np.array(part) @ np.array([[c, s], [-s, c]])
                canvas.polygon(corners + state[:2], color)
            return canvas.frame
        for n, (_, entries) in enumerate(self._groups):
            for x, y in np.transpose(entries):
                color = self.COLORS[n % len(self.COLORS)]
                canvas.disc((state[x], state[y]), self.RADIUS, color)
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        difference = state[: self.coordinates] - goal[: self.coordinates]
        if self.sprite is not None:
            difference = difference * [[[i]] in self._moved for i in range(3)]
            angle = abs(math.remainder(difference[2], 2 * math.pi))
            return math.hypot(*difference[:2]) <= self.GOAL_DISTANCE and angle <= self.GOAL_ANGLE
        moved = [dot for entries in self._moved for dot in np.transpose(entries)]
        return all(math.hypot(*difference[dot]) <= self.GOAL_DISTANCE for dot in moved)

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        if self.sprite is not None:
            x, y, angle = states[:, :3].T[..., None]
            return {"x": x, "y": y, "sin angle": np.sin(angle), "cos angle": np.cos(angle)}
        targets = {}
        for name, entries in self._groups:
            dots = states[:, np.array(entries)]  # (n, 2 axes, dots of the group)
            targets[name] = dots.mean(2)
            if name.startswith("pair"):
                targets[f"{name} offset"] = dots[:, :, 1] - dots[:, :, 0]
        return targets

    def behavior(self, rng: np.random.Generator):
        """Displacements uniform among those that stay inside and are not blocked."""

        def policy(env: "DotWorld") -> np.ndarray:
            position, action = env._position, []
            for entries in env._moved:
                displacement = env._draw(rng, position, entries)
                position = env._move(position, entries, displacement)
                action += displacement
            return np.array(action or [rng.uniform(-1, 1)], dtype=np.float32)

        return policy


# ------------------------------------------------------------------------------------------------
# TwoRoom
# ------------------------------------------------------------------------------------------------


class TwoRoom(PixelEnv):
    """
    ## Description
    A round agent in a square of 224 x 224 units, cut by a wall with one door. The published rule
    (stable-worldmodel): a step is cut at the border; a step that enters the wall's zone from the
    side it started on, outside the door, stops 0.5 units before the wall.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: displacement (x, y) in units of the speed, 5 units a step.

    ## Observation Space
    `Box(0, 255, (size, size, 3), uint8)`: the frame; y points down. No target is drawn.

    ## Rewards
    1 on a step that reaches the goal, else 0.

    ## Starting State
    Uniform in the two rooms, where the agent (radius 7) touches neither border (14 wide) nor wall.

    ## Episode End
    At the goal: distance below 16 units.

    ## Arguments
    * `size=64`: side of the frame in pixels.

    State: (x, y). The wall is at x = 112, 10 thick, its door centred at y = 49 with half-size 14.
    """

    WORLD, BORDER, RADIUS, SPEED, GOAL_DISTANCE = 224.0, 14.0, 7.0, 5.0, 16.0
    WALL, THICKNESS, DOOR, DOOR_HALF, DOOR_MARGIN, PUSHBACK = 112.0, 10.0, 49.0, 14.0, 1.75, 0.5
    controlled = ("agent position",)

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(2, size=size, render_mode=render_mode)
        self._position = np.zeros(2)
        canvas, w, b = Canvas(self.size, self.WORLD), self.WORLD, self.BORDER
        x, half = self.WALL, self.THICKNESS / 2
        low, high = self.DOOR - self.DOOR_HALF, self.DOOR + self.DOOR_HALF
        for x0, y0, x1, y1 in (
            (0, 0, w, b),
            (0, w - b, w, w),
            (0, 0, b, w),
            (w - b, 0, w, w),
            (x - half, 0, x + half, low),
            (x - half, high, x + half, w),
        ):
            canvas.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], (60, 60, 60))
        self._rooms = canvas.frame

    def state(self) -> np.ndarray:
        return self._position.copy()

    def _set_state(self, state: np.ndarray) -> None:
        self._position = state.copy()

    def _initial_state(self) -> np.ndarray:
        return self._place(self.np_random)

    def _place(self, rng: np.random.Generator) -> np.ndarray:
        margin = self.BORDER + self.RADIUS
        while True:
            place = rng.uniform(margin, self.WORLD - margin, 2)
            if abs(place[0] - self.WALL) > self.THICKNESS / 2 + self.RADIUS:
                return place

    def _step(self, action: np.ndarray) -> None:
        # float32, as the original computes
        moved = self._position.astype(np.float32) + action.astype(np.float32) * np.float32(
            self.SPEED
        )
        margin, zone = self.BORDER + self.RADIUS, self.THICKNESS / 2 + self.RADIUS
        x, y = (min(max(float(v), margin), self.WORLD - margin) for v in moved)
        if abs(y - self.DOOR) > self.DOOR_HALF + self.DOOR_MARGIN:
            if self._position[0] < self.WALL and x > self.WALL - zone:
                x = self.WALL - zone - self.PUSHBACK
            elif self._position[0] >= self.WALL and x < self.WALL + zone:
                x = self.WALL + zone + self.PUSHBACK
        self._position = np.array([x, y])

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas = Canvas(self.size, self.WORLD, self._rooms)
        canvas.disc(state[:2], self.RADIUS, (214, 39, 40))
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        return math.hypot(*(state - goal)) < self.GOAL_DISTANCE

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        return {"agent position": states[:, :2]}

    def behavior(self, rng: np.random.Generator):
        """Head for a random target, through the door if it is in the other room, then for another;
        noise of standard deviation 2 on each entry, the last action again with probability 0.05."""
        target, last = None, None

        def policy(env: "TwoRoom") -> np.ndarray:
            nonlocal target, last
            here = env._position
            if target is None or math.hypot(*(here - target)) < env.GOAL_DISTANCE:
                target = env._place(rng)
            heading = target - here
            if (here[0] < env.WALL) != (target[0] < env.WALL):
                door = np.array([env.WALL, env.DOOR]) - here
                heading = door if math.hypot(*door) > 10.5 else heading
            action = heading / max(math.hypot(*heading), 1e-8) + rng.normal(0.0, 2.0, 2)
            if last is None or rng.random() >= 0.05:
                last = np.clip(action, -1, 1).astype(np.float32)
            return last

        return policy


# ------------------------------------------------------------------------------------------------
# Reacher
# ------------------------------------------------------------------------------------------------


class Reacher(PixelEnv):
    """
    ## Description
    The two-link planar arm of the DeepMind Control Suite, physics identical (MuJoCo): timestep and
    action 0.02 s, contacts off, links of 0.12 m and 0.12 m (the second drawn 0.10 m and a ball at
    its tip), capsules of radius 0.01 m, joint damping 0.01, the wrist limited to 160 degrees each
    way.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: control of the motors at shoulder and wrist, gear 0.05.

    ## Observation Space
    `Box(0, 255, (size, size, 3), uint8)`: 0.6 x 0.6 m from above. No target is drawn.

    ## Rewards
    1 on a step that reaches the goal, else 0.

    ## Starting State
    Shoulder uniform in [-180, 180] degrees, wrist in [-160, 160] degrees, at rest.

    ## Episode End
    At the goal: both joint angles within 0.05 rad (the shoulder's difference wrapped).

    ## Arguments
    * `size=64`: side of the frame in pixels.

    State: shoulder and wrist angle (rad), their velocities (rad/s), then the solver's warm start.
    """

    XML = """
    <mujoco>
      <option timestep="0.02"><flag contact="disable"/></option>
      <default>
        <joint type="hinge" axis="0 0 1" damping="0.01"/>
        <motor gear="0.05" ctrlrange="-1 1" ctrllimited="true"/>
      </default>
      <worldbody>
        <body pos="0 0 0.01">
          <geom type="capsule" fromto="0 0 0 0.12 0 0" size="0.01"/>
          <joint name="shoulder"/>
          <body pos="0.12 0 0">
            <geom type="capsule" fromto="0 0 0 0.1 0 0" size="0.01"/>
            <joint name="wrist" limited="true" range="-160 160"/>
            <body pos="0.12 0 0"><geom type="sphere" size="0.01"/></body>
          </body>
        </body>
      </worldbody>
      <actuator><motor joint="shoulder"/><motor joint="wrist"/></actuator>
    </mujoco>"""
    WORLD, LINK, DRAWN, RADIUS, GOAL_ANGLE = 0.6, 0.12, 0.10, 0.01, 0.05
    controlled = ("joint angles",)

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(2, size=size, render_mode=render_mode)
        self._model = mujoco.MjModel.from_xml_string(self.XML)
        self._data = mujoco.MjData(self._model)

    def state(self) -> np.ndarray:
        data = self._data
        return np.concatenate([data.qpos, data.qvel, data.qacc_warmstart])

    def _set_state(self, state: np.ndarray) -> None:
        data = self._data
        data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = state[:2], state[2:4], state[4:]

    def _initial_state(self) -> np.ndarray:
        limits = np.array([math.pi, math.radians(160)])
        return np.concatenate([self.np_random.uniform(-limits, limits), np.zeros(4)])

    def _step(self, action: np.ndarray) -> None:
        self._data.ctrl[:] = action
        mujoco.mj_step(self._model, self._data)

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas, middle = Canvas(self.size, self.WORLD, 245), self.WORLD / 2
        canvas.disc((middle, middle), 2 * self.RADIUS, (60, 60, 60))
        # y points up in the world and down in the frame
        x, y = math.cos(state[0]), -math.sin(state[0])
        elbow = (middle + self.LINK * x, middle + self.LINK * y)
        x, y = math.cos(state[0] + state[1]), -math.sin(state[0] + state[1])
        end = (elbow[0] + self.DRAWN * x, elbow[1] + self.DRAWN * y)
        finger = (elbow[0] + self.LINK * x, elbow[1] + self.LINK * y)
        canvas.capsule((middle, middle), elbow, self.RADIUS, (31, 119, 180))
        canvas.capsule(elbow, end, self.RADIUS, (255, 127, 14))
        canvas.disc(finger, self.RADIUS, (214, 39, 40))
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        shoulder = abs(math.remainder(state[0] - goal[0], 2 * math.pi))
        return shoulder < self.GOAL_ANGLE and abs(state[1] - goal[1]) < self.GOAL_ANGLE

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        angles = states[:, :2]
        return {"joint angles": np.concatenate([np.sin(angles), np.cos(angles)], 1)}

    def behavior(self, rng: np.random.Generator):
        """Uniform random actions."""
        return lambda env: rng.uniform(-1, 1, 2).astype(np.float32)


# ------------------------------------------------------------------------------------------------
# Push-T
# ------------------------------------------------------------------------------------------------


class PushT(PixelEnv):
    """
    ## Description
    A round pusher and a T-shaped block on a plane of 512 x 512 units, seen from above (pymunk; no
    gravity, a block that is not pushed stands still). The agent is moved by a PD controller
    (k_p 100, k_v 20) towards a point; 10 physics steps of 0.01 s an action.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: where the agent should go, relative to where it is, in units of
    100 (x, y).

    ## Observation Space
    `Box(0, 255, (size, size, 3), uint8)`: the frame; y points down. No target is drawn.

    ## Rewards
    1 on a step that reaches the goal, else 0.

    ## Starting State
    Block at rest, x, y uniform in [100, 400], angle uniform in [0, 2 pi]; agent uniform in
    [50, 450], at least 5 units from the block.

    ## Episode End
    At the goal: agent x, y and block x, y within 20 units of the goal's (the norm of all four
    differences), and the block's angle within pi/9.

    ## Arguments
    * `size=64`: side of the frame in pixels.

    State: agent x, y, block x, y, angle in [0, 2 pi), agent velocity x, y; then, for restoration,
    the bodies as pymunk has them, and what they were when the block was last untouched with the
    targets of up to 32 actions since. Placing a state of the first seven entries alone does what
    the original does at reset: the block at rest, then one physics step. In a contact, pymunk keeps
    solver impulses that cannot be set: restoring repeats those actions to get them back. Of 360
    states along 30 episodes of the behaviour policy, 99 with the block moving, 98.3% then went on
    to the last bit over 24 steps and the worst was 0.05 units off (pymunk 7.3.1). A block jammed
    between agent and wall is the exception: it can differ by more than a unit after a few steps.
    """

    WORLD, AGENT_RADIUS, ACTION, DT, SUBSTEPS = 512.0, 15.0, 100, 0.01, 10
    K_P, K_V, MEMORY = 100, 20, 32
    GOAL_DISTANCE, GOAL_ANGLE = 20.0, math.pi / 9
    # The T's two boxes in its own frame: a bar of 120 x 30, a stem of 30 x 90 below it.
    BAR = [(-60.0, 30.0), (60.0, 30.0), (60.0, 0.0), (-60.0, 0.0)]
    STEM = [(-15.0, 30.0), (-15.0, 120.0), (15.0, 120.0), (15.0, 30.0)]
    controlled = ("agent position", "block position", "block orientation")

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(2, size=size, render_mode=render_mode)
        canvas, corners = Canvas(self.size, self.WORLD), [(5, 5), (5, 506), (506, 506), (506, 5)]
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
            canvas.capsule(a, b, 2, (160, 160, 160))
        self._floor = canvas.frame
        self._build()

    def _build(self) -> None:
        self._clock, self._touched = 0, -9  # physics steps: now, and of the block's last touch
        self._trail = []  # bodies and target of each action since the block was untouched
        self._space = pymunk.Space()
        self._space.on_collision(post_solve=self._touch)
        self._space.gravity, self._space.damping = (0, 0), 0
        ends = [
            ((5, 506), (5, 5)),
            ((5, 5), (506, 5)),
            ((506, 5), (506, 506)),
            ((5, 506), (506, 506)),
        ]
        self._space.add(*(pymunk.Segment(self._space.static_body, a, b, 2) for a, b in ends))
        self._agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self._space.add(self._agent, pymunk.Circle(self._agent, self.AGENT_RADIUS))
        # The original takes the bar's moment for both boxes.
        moment = pymunk.moment_for_poly(1, self.BAR)
        self._block = pymunk.Body(1, moment + moment)
        bar, stem = (pymunk.Poly(self._block, box) for box in (self.BAR, self.STEM))
        self._cog = (bar.center_of_gravity + stem.center_of_gravity) / 2
        self._block.center_of_gravity = self._cog
        self._space.add(self._block, bar, stem)

    def _touch(self, arbiter, space, data) -> None:
        self._touched = self._clock

    def state(self) -> np.ndarray:
        memory = np.zeros(11 + 2 * self.MEMORY)  # first bodies, number of targets, targets
        if self._trail:
            targets = np.ravel([target for _, target in self._trail])
            memory[: 11 + len(targets)] = *self._trail[0][0], len(self._trail), *targets
        (x, y), angle = self._block.position, self._block.angle
        agent = (*self._agent.position, x, y, angle % (2 * math.pi), *self._agent.velocity)
        return np.array([*agent, *self._bodies(), *memory])

    def _bodies(self) -> tuple[float, ...]:
        """Agent x, y, velocity, block's centre of gravity, velocity, angle, angular velocity."""
        agent, block, angle = self._agent, self._block, self._block.angle
        # pymunk computes with the centre of gravity: without an offset its position shows that.
        block.center_of_gravity = (0, 0)
        block.angle = angle
        centre = block.position
        block.center_of_gravity = self._cog
        block.angle = angle
        moving = (*block.velocity, angle, block.angular_velocity)
        return (*agent.position, *agent.velocity, *centre, *moving)

    def _set_bodies(self, values) -> None:
        self._agent.position, self._agent.velocity = tuple(values[0:2]), tuple(values[2:4])
        block = self._block
        block.center_of_gravity = (0, 0)
        block.position = tuple(values[4:6])
        block.center_of_gravity = self._cog
        block.velocity = tuple(values[6:8])
        block.angle, block.angular_velocity = values[8:10]

    def set_state(self, state: np.ndarray) -> None:
        if np.shape(state) != (7,):
            return super().set_state(state)
        x, y, block_x, block_y, angle, vx, vy = self._checked(state, "state", (7,)).tolist()
        self._build()
        self._agent.velocity, self._agent.position = (vx, vy), (x, y)
        self._block.angle = angle
        self._block.position = block_x, block_y
        self._space.step(self.DT)

    def _set_state(self, state: np.ndarray) -> None:
        self._build()  # a new space has no impulses left from other contacts
        values, count = state.tolist(), int(state[27])
        if count:  # the same actions again, for the impulses; then what they led to, exactly
            self._set_bodies(values[17:27])
            for n in range(28, 28 + 2 * count, 2):
                self._trail.append((self._bodies(), values[n : n + 2]))
                self._advance(
                    *(np.float32(t) if np.float32(t) == t else t for t in values[n : n + 2])
                )
            self._trail[0] = values[17:27], self._trail[0][1]
        self._set_bodies(values[7:17])

    def _initial_state(self) -> np.ndarray:
        rng = self.np_random
        x, y = rng.uniform(100, 400, 2)
        angle = rng.uniform(0, 2 * math.pi)
        while True:
            agent = rng.uniform(50, 450, 2)
            self.set_state(np.array([*agent, x, y, angle, 0, 0]))
            gap = min(shape.point_query(tuple(agent)).distance for shape in self._block.shapes)
            if gap >= self.AGENT_RADIUS + 5:
                return self.state()

    @staticmethod
    def _rotation(angle: float) -> np.ndarray:
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[c, -s], [s, c]])

    def _step(self, action: np.ndarray) -> None:
        # in the action's own precision, as the original computes
        tx, ty = (p + a for p, a in zip(self._agent.position, action * self.ACTION, strict=True))
        kept = self._trail[1 - self.MEMORY :] if self._clock - self._touched < 5 else []
        self._trail = [*kept, (self._bodies(), (float(tx), float(ty)))]
        self._advance(tx, ty)

    def _advance(self, tx: float, ty: float) -> None:
        agent, k_p, k_v, dt = self._agent, self.K_P, self.K_V, self.DT
        for _ in range(self.SUBSTEPS):
            (x, y), (vx, vy) = agent.position, agent.velocity
            ax, ay = k_p * (tx - x) + k_v * (0 - vx), k_p * (ty - y) + k_v * (0 - vy)
            agent.velocity = float(vx + ax * dt), float(vy + ay * dt)
            self._clock += 1
            self._space.step(dt)

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas, rotation = Canvas(self.size, self.WORLD, self._floor), self._rotation(state[4])
        for box in (self.BAR, self.STEM):
            canvas.polygon(np.array(box) @ rotation.T + state[2:4], (119, 136, 153))
        canvas.disc(state[:2], self.AGENT_RADIUS, (65, 105, 225))
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        distance = np.sqrt(((state[:4] - goal[:4]) ** 2).sum())
        angle = abs(math.remainder(state[4] - goal[4], 2 * math.pi))
        return bool(distance < self.GOAL_DISTANCE and angle < self.GOAL_ANGLE)

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        angle = states[:, 4:5]
        return {
            "agent position": states[:, :2],
            "block position": states[:, 2:4],
            "block orientation": np.concatenate([np.sin(angle), np.cos(angle)], 1),
        }

    def behavior(self, rng: np.random.Generator):
        """Walk round the block to a point of its outline, of six random ones the nearest, and
        hammer there: back off and strike, a few units deep at right angles to the side, some times;
        and again elsewhere. Nothing is pushed on towards a near wall.

        The angle of the block tells where and which way a stroke turns, so it tells the actions."""
        outline = np.array(
            [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)]
        )
        edges = np.roll(outline, -1, 0) - outline
        lengths = np.abs(edges).sum(1)
        plan = {"left": 0}

        def inside(point: np.ndarray) -> bool:
            return bool((np.abs(point - PushT.WORLD / 2) < 150).all())

        def draw(env: "PushT") -> None:
            rotation, origin = env._rotation(env._block.angle), np.array(env._block.position)
            found = []
            for _ in range(20):
                edge = rng.choice(8, p=lengths / lengths.sum())
                point = outline[edge] + rng.uniform(0.05, 0.95) * edges[edge]
                inward = np.array([-edges[edge][1], edges[edge][0]]) / lengths[edge]
                if inside(origin + rotation @ (env._cog + 100 * inward)):
                    away = math.hypot(*(origin + rotation @ point - env._agent.position))
                    found.append((away, point, inward))
                if len(found) == 6:
                    break
            _, point, inward = min(found or [(0, point, inward)], key=lambda f: f[0])
            plan.update(point=point, inward=inward, phase="walk", wait=0)
            plan.update(left=int(rng.integers(2, 6)), swing=rng.uniform(25, 60))
            plan.update(depth=rng.uniform(4, 14), speed=rng.uniform(0.3, 0.7))

        def policy(env: "PushT") -> np.ndarray:
            if plan["left"] <= 0:
                draw(env)
            agent, rotation = np.array(env._agent.position), env._rotation(env._block.angle)
            origin = np.array(env._block.position)
            centre = origin + rotation @ env._cog
            inward = rotation @ plan["inward"]
            contact = origin + rotation @ plan["point"] - env.AGENT_RADIUS * inward
            start, speed = contact - plan["swing"] * inward, plan["speed"]
            goal = start
            plan["wait"] += 1
            if plan["phase"] == "walk":
                # round the block on a circle, then straight to where the strokes start
                a, b = (math.atan2(*(p - centre)[::-1]) for p in (agent, start))
                angle, speed = math.remainder(b - a, 2 * math.pi), 0.5
                if abs(angle) > 0.5:
                    step = a + math.copysign(min(abs(angle), 0.7), angle)
                    goal = centre + 115 * np.array([math.cos(step), math.sin(step)])
                goal = np.clip(goal, 20, env.WORLD - 20)
                if plan["wait"] > 25:
                    plan["left"] = 0
            elif plan["phase"] == "strike":
                goal = plan["end"]
                if (goal - agent) @ inward < 6 or plan["wait"] > 12:
                    plan.update(phase="back", wait=0)
            arrived = math.hypot(*(start - agent)) < (12 if plan["phase"] == "walk" else 8)
            late = plan["phase"] == "back" and plan["wait"] > 12
            if plan["phase"] != "strike" and (arrived or late):
                plan["left"] -= plan["phase"] == "back"
                plan.update(phase="strike", wait=0, end=contact + plan["depth"] * inward)
                if not inside(centre + 30 * inward) and inward @ (centre - env.WORLD / 2) > 0:
                    plan["left"] = 0
            step = goal - agent
            action = step / max(0.4 * env.ACTION, math.hypot(*step) / speed)
            return np.clip(action + rng.normal(0, 0.03, 2), -1, 1).astype(np.float32)

        return policy


# ------------------------------------------------------------------------------------------------
# Cube
# ------------------------------------------------------------------------------------------------


class Cube(PixelEnv):
    """
    ## Description
    A gripper with two fingers and a cube on a table (after OGBench cube-single; MuJoCo, physics
    0.002 s, control 0.05 s). The gripper really grasps, by contact and friction; its fingers
    follow their target with a time constant of 0.2 s. The arm that carries it is left out, since
    the original makes it transparent: a carriage holds the gripper.

    ## Action Space
    `Box(-1, 1, (5,), float32)`: targets relative to where the gripper is: x, y, z in units of
    0.05 m, yaw in units of 0.3 rad, opening in units of 1 (positive closes).

    ## Observation Space
    `Box(0, 255, (size, size, 3), uint8)`: from a camera in front, looking down at 40 degrees.

    ## Rewards
    1 on a step that reaches the goal, else 0.

    ## Starting State
    Cube (half-size 0.02 m) on the table, x uniform in [0.3, 0.55] m, y in [-0.3, 0.3] m, any yaw;
    gripper open, anywhere in x [0.25, 0.6], y [-0.35, 0.35], z [0.15, 0.35] m, any yaw.

    ## Episode End
    At the goal: the cube within 0.04 m of its goal position.

    ## Arguments
    * `size=64`: side of the frame in pixels.

    State: cube x, y, z, quaternion w, x, y, z; gripper x, y, z, yaw and opening from 0 to 1, where
    1 is closed; then MuJoCo's full integration state. The gripper stays in x [0.25, 0.6],
    y [-0.35, 0.35], z [0.02, 0.35] m.
    """

    FINGER_TRAVEL = 0.04  # m from the centre to a finger when open
    XML = """
    <mujoco>
      <option timestep="0.002" integrator="implicitfast" cone="elliptic" impratio="10"/>
      <default>
        <position kp="1500" kv="55"/>
        <default class="finger">
          <geom type="box" size="0.012 0.008 0.025" mass="0.02" condim="4"/>
          <joint type="slide" range="0 0.04"/>
          <position kp="750" kv="25" forcerange="-15 15" timeconst="0.2"/>
        </default>
      </default>
      <worldbody>
        <geom name="table" type="plane" size="0 0 0.1"/>
        <body name="cube" pos="0.4 0 0.02">
          <freejoint/><geom name="cube" type="box" size="0.02 0.02 0.02" density="1000" condim="4"/>
        </body>
        <body name="gripper" gravcomp="1">
          <inertial pos="0 0 0.05" mass="0.35" diaginertia="0.002 0.002 0.002"/>
          <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/>
          <joint name="z" type="slide" axis="0 0 1"/><joint name="yaw" type="hinge" axis="0 0 1"/>
          <geom name="palm" type="box" size="0.01 0.055 0.008" pos="0 0 0.043" contype="0"
                conaffinity="0"/>
          <body gravcomp="1" childclass="finger">
            <joint name="left" axis="0 1 0"/><geom name="left" pos="0 0.008 0.01"/>
          </body>
          <body gravcomp="1" childclass="finger">
            <joint name="right" axis="0 -1 0"/><geom name="right" pos="0 -0.008 0.01"/>
          </body>
        </body>
      </worldbody>
      <actuator>
        <position joint="x"/><position joint="y"/><position joint="z"/>
        <position joint="yaw" kp="40" kv="0.6"/>
        <position joint="left" class="finger"/><position joint="right" class="finger"/>
      </actuator>
    </mujoco>"""
    SUBSTEPS, CUBE, GOAL_DISTANCE = 25, 0.02, 0.04  # m
    SCALE = np.array([0.05, 0.05, 0.05, 0.3, 1.0])  # m, m, m, rad, opening
    LOW, HIGH = np.array([0.25, -0.35, 0.02]), np.array([0.6, 0.35, 0.35])  # m
    CUBE_LOW, CUBE_HIGH = np.array([0.3, -0.3]), np.array([0.55, 0.3])  # m
    COLORS = {"table": (205, 198, 188), "cube": (214, 39, 40), "palm": (70, 70, 75)} | {
        "left": (31, 119, 180),
        "right": (44, 160, 44),
    }
    CAMERA, PITCH, VIEW = np.array([2.18, 0.0, 1.58]), math.radians(40), math.radians(20)
    # the camera looks towards -x and down; its right is +y
    HALF = math.tan(VIEW / 2)
    FORWARD = np.array([-math.cos(PITCH), 0.0, -math.sin(PITCH)])
    UP = np.array([-math.sin(PITCH), 0.0, math.cos(PITCH)])
    LAMP = np.array([0.42, 0.0, 1.5])
    AROUND = np.array([(i, j) for j in (-1, 0, 1) for i in (-1, 0, 1) if i or j]) / 3  # pixels
    SIDES = np.array([*itertools.product((-1.0, 1.0), repeat=3)])  # corners of a box
    controlled = ("cube position", "gripper position", "gripper opening", "gripper yaw")

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(5, size=size, render_mode=render_mode)
        self._model = mujoco.MjModel.from_xml_string(self.XML)
        self._data, self._scene = mujoco.MjData(self._model), mujoco.MjData(self._model)
        for data in (self._data, self._scene):
            mujoco.mj_forward(self._model, data)
        names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._colors = np.array([self.COLORS[name] for name in names], np.float64)
        table = self._cast(np.full(1, 0.5), np.full(1, 0.5))[0]  # bare in the corner
        self._bare = np.full((size, size, 3), np.rint(table), np.uint8)
        self._full = np.zeros(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))

    # qpos: cube x, y, z, quaternion (7), gripper x, y, z, yaw (4), left and right finger (2)

    def state(self) -> np.ndarray:
        mujoco.mj_getState(self._model, self._data, self._full, mujoco.mjtState.mjSTATE_INTEGRATION)
        return np.concatenate([self._data.qpos[:11], [self._opening()], self._full])

    def _opening(self) -> float:
        travel = (self._data.qpos[11] + self._data.qpos[12]) / 2
        return float(np.clip(1 - travel / self.FINGER_TRAVEL, 0, 1))

    def _set_state(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self._model, self._data, state[12:], mujoco.mjtState.mjSTATE_INTEGRATION)

    def _initial_state(self) -> np.ndarray:
        rng, data = self.np_random, self._data
        yaw = rng.uniform(-math.pi, math.pi)
        mujoco.mj_resetData(self._model, data)
        data.qpos[:3] = *rng.uniform(self.CUBE_LOW, self.CUBE_HIGH), self.CUBE
        data.qpos[3:7] = math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)
        data.qpos[7:10] = rng.uniform([*self.LOW[:2], 0.15], self.HIGH)
        data.qpos[10], data.qpos[11:] = rng.uniform(-math.pi, math.pi), self.FINGER_TRAVEL
        return self.state()

    def _step(self, action: np.ndarray) -> None:
        here = np.append(self._data.qpos[7:11], self._opening())
        target = here + action * self.SCALE
        target[:3] = target[:3].clip(self.LOW, self.HIGH)
        self._data.ctrl[:4] = target[:4]
        self._data.ctrl[4:] = self.FINGER_TRAVEL * (1 - min(max(target[4], 0.0), 1.0))
        mujoco.mj_step(self._model, self._data, self.SUBSTEPS)

    def render_state(self, state: np.ndarray) -> np.ndarray:
        """One ray a pixel that may not be bare table, and 3 x 3 where neighbouring pixels hit
        different things."""
        model, scene, size = self._model, self._scene, self.size
        scene.qpos[:11], scene.qpos[11:] = state[:11], self.FINGER_TRAVEL * (1 - state[11])
        mujoco.mj_kinematics(model, scene)
        colors, hit = np.empty((size, size, 3)), np.zeros((size, size), np.int32)
        near = y, x = np.nonzero(self._near())
        colors[near], hit[near] = self._cast(x + 0.5, y + 0.5)
        edge = np.zeros((size, size), bool)
        down, across = hit[1:] != hit[:-1], hit[:, 1:] != hit[:, :-1]
        for part, differs in (
            (edge[1:], down), (edge[:-1], down), (edge[:, 1:], across), (edge[:, :-1], across)
        ):  # fmt: skip
            part |= differs
        edge = y, x = np.nonzero(edge)
        if len(x):
            x, y = self.AROUND[:, :1] + x + 0.5, self.AROUND[:, 1:] + y + 0.5  # (8, edges)
            around = self._cast(x.ravel(), y.ravel())[0].reshape(8, -1, 3)
            colors[edge] = (colors[edge] + around.sum(0)) / 9
        frame = self._bare.copy()
        frame[near] = np.rint(colors[near])
        return frame

    def _near(self) -> np.ndarray:
        """The pixels (size, size) within the bounding rectangle of a box or of its shadow, and one
        around. All others show bare table."""
        model, scene = self._model, self._scene
        sides = self.SIDES * model.geom_size[1:, None]  # (geom, corner, 3)
        corners = np.einsum("gij,gcj->gci", scene.geom_xmat[1:].reshape(-1, 3, 3), sides)
        corners += scene.geom_xpos[1:, None]
        lit = corners - self.LAMP
        shadows = self.LAMP - lit * (self.LAMP[2] / lit[..., 2:])  # thrown on the table
        points = np.concatenate([corners, shadows]) - self.CAMERA
        scale = self.size / (2 * self.HALF * (points @ self.FORWARD))  # pixels a metre
        at, middle = np.arange(self.size)[:, None] + 0.5, self.size / 2
        inside = []
        for place in (middle - scale * (points @ self.UP), middle + scale * points[..., 1]):
            inside.append((at > place.min(1) - 1) & (at < place.max(1) + 1))
        down, across = np.array(inside, np.float32)
        return down @ across.T > 0

    def _cast(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colours (n, 3) and geom ids (n,), 100 more in a shadow, at frame positions in pixels."""
        right, up = (2 * x / self.size - 1) * self.HALF, (1 - 2 * y / self.size) * self.HALF
        rays = self.FORWARD + right[:, None] * (0, 1, 0) + up[:, None] * self.UP
        n, scene = len(x), self._scene
        hit, distance, normals = np.empty(n, np.int32), np.empty(n), np.empty(3 * n)
        found = hit, distance, normals, n, 10.0  # at most 10 m away
        mujoco.mj_multiRay(self._model, scene, self.CAMERA, rays.ravel(), None, 1, -1, *found)
        light = np.array([0.36, 0.48, 0.8])
        shade = 0.55 + 0.45 * np.abs(normals.reshape(-1, 3) @ light)
        # A lamp overhead throws the shadows: they tell a thing's height from its distance.
        rays = self.CAMERA + distance[:, None] * rays - self.LAMP
        found = np.empty(n, np.int32), distance, None, n, 10.0
        mujoco.mj_multiRay(self._model, scene, self.LAMP, rays.ravel(), None, 1, -1, *found)
        shadow = distance < 0.999  # met something before the point
        shade[shadow] *= 0.6
        return self._colors[hit] * shade[:, None], hit + 100 * shadow

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        return bool(np.sqrt(((state[:3] - goal[:3]) ** 2).sum()) <= self.GOAL_DISTANCE)

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        yaw = 2 * states[:, 10:11]  # the gripper looks the same after half a turn
        return {
            "cube position": states[:, :3],
            "gripper position": states[:, 7:10],
            "gripper opening": states[:, 11:12],
            "gripper yaw": np.concatenate([np.sin(yaw), np.cos(yaw)], 1),
        }

    def behavior(self, rng: np.random.Generator):
        """Pick the cube up, carry it to a random place, put it down, wander about, and again; speed
        and noise differ by episode. A few grasps go wrong: beside the cube, closed too late or not
        at all, let go on the way; the data should show that the cube does not always come along."""
        noise, speed = rng.uniform(0, 0.1), rng.uniform(0.2, 0.45)
        plan = {"phase": "above"}

        def draw() -> None:
            plan.update(
                wait=0,  # steps in this phase
                place=rng.uniform(Cube.CUBE_LOW, Cube.CUBE_HIGH),  # where the cube goes
                hover=rng.uniform([*Cube.LOW[:2], 0.12], Cube.HIGH),  # where the hand goes then
                height=rng.uniform(0.06, 0.3),  # of the carrying
                yaw=rng.uniform(-1.5, 1.5),  # to turn by while carrying
                rest=int(rng.integers(0, 12)),  # steps of wandering, at least
                grip=rng.choice([-1.0, 1.0]),  # fingers while wandering
                offset=np.append(rng.normal(0, 0.005, 2), 0),  # from the cube to the grasp
                hold=int(rng.integers(2, 10)),  # steps of closing
                close=-1.0 if rng.random() < 0.03 else 1.0,  # the fingers stay open, or grasp
            )

        draw()

        def policy(env: "Cube") -> np.ndarray:
            cube, hand = env._data.qpos[:3], env._data.qpos[7:10]
            w, *_, z = env._data.qpos[3:7]
            cube_yaw = 2 * math.atan2(z, w)
            align = math.remainder(cube_yaw - env._data.qpos[10], math.pi / 2)
            aim, phase = cube + plan["offset"], plan["phase"]
            target, turn, close = aim.copy(), align, -1.0
            plan["wait"] += 1
            near = math.hypot(*(hand - aim)[:2])
            if phase == "above":
                target[2] = max(cube[2] + 0.07, 0.1) if near > 0.02 else cube[2] + 0.05
                done = near < 0.008 and hand[2] < cube[2] + 0.08 and abs(align) < 0.15
            elif phase == "down":
                target[2] = max(cube[2], 0.02)
                done = hand[2] < cube[2] + 0.008
            elif phase == "close":
                close, done = plan["close"], plan["wait"] > plan["hold"]
            elif phase == "lift":
                target[:2], target[2], close = hand[:2], plan["height"], plan["close"]
                done = hand[2] > plan["height"] - 0.02
            elif phase == "carry":
                target, close = np.append(plan["place"], plan["height"]), plan["close"]
                turn = plan["yaw"]
                plan["yaw"] -= math.copysign(min(abs(turn), 0.3), turn)
                done = math.hypot(*(hand[:2] - plan["place"])) < 0.02
            elif phase == "lower":
                target, close = np.append(plan["place"], 0.022), plan["close"]
                turn, done = 0.0, cube[2] < 0.026
            elif phase == "open":
                target, turn, done = hand.copy(), 0.0, plan["wait"] > 4
            else:  # retreat, and wander about
                target = plan["hover"] if hand[2] > 0.1 else np.append(hand[:2], 0.2)
                turn = math.remainder(plan["yaw"] - env._data.qpos[10], math.pi)
                close = plan["grip"] if hand[2] > 0.1 else -1.0
                done = hand[2] > 0.1 and plan["wait"] > plan["rest"]
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


# ------------------------------------------------------------------------------------------------
# Any other Gymnasium environment
# ------------------------------------------------------------------------------------------------


class Adapted(gym.Wrapper):
    """A Gymnasium environment with bounded continuous actions, seen as the five above are seen.

    Observes its `rgb_array` picture, resized to (size, size, 3) uint8; actions are rescaled to
    [-1, 1]. `info["state"]` is its own observation, flattened, and then what numbers its info
    holds; `columns` (name -> entries) says which is which, and `probe_targets` splits them. Such a
    state cannot be restored, and there is no goal. Raises ValueError on an environment that it
    cannot see this way, saying why.
    """

    VARIANTS: dict[str, dict] = {"default": {}}
    controlled = ()

    def __init__(self, name: str, *, size: int = 64):
        try:
            env = gym.make(name, render_mode="rgb_array")
        except (gym.error.Error, ImportError, TypeError, ValueError) as error:
            raise ValueError(f"gymnasium:{name}: not made by gymnasium.make: {error}") from error
        box = env.action_space
        if not (isinstance(box, gym.spaces.Box) and box.is_bounded()):
            raise ValueError(f"gymnasium:{name}: expected bounded continuous actions, got {box}")
        env = gym.wrappers.FlattenObservation(env)  # for the columns; the picture is what is seen
        if box.shape != (math.prod(box.shape),):
            raise ValueError(f"gymnasium:{name}: expected a vector of actions, got {box}")
        super().__init__(gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)))
        self.size = size
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        obs, first = self.env.reset(seed=0)
        try:
            self.env.render()
        except Exception as error:  # foreign code, which may lack anything: pygame, OpenGL
            raise ValueError(f"gymnasium:{name}: gives no picture here: {error}") from error
        *_, info = self.env.step(np.zeros(box.shape, np.float32))
        self._keys = [k for k in sorted({*first} & {*info}) if self._numbers(info[k]) is not None]
        self.columns = {"observation": obs.size} if obs.size <= 1000 else {}
        self.columns |= {key: self._numbers(info[key]).size for key in self._keys}

    @staticmethod
    def _numbers(value) -> np.ndarray | None:
        value = np.asarray(value)
        return value.astype(float).ravel() if value.dtype.kind in "biuf" else None

    def _seen(self, obs: np.ndarray, info: dict):
        parts = [obs.ravel()] if "observation" in self.columns else []
        parts += [self._numbers(info[key]) for key in self._keys]
        state = np.nan_to_num(np.concatenate([*parts, np.zeros(0)]))
        return resize(self.env.render(), self.size), info | {"state": state}

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        return self._seen(*self.env.reset(seed=seed, options=options))

    def step(self, action: np.ndarray):
        obs, reward, terminated, truncated, info = self.env.step(np.asarray(action, np.float32))
        frame, info = self._seen(obs, info)
        return frame, reward, terminated, truncated, info

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        return split_columns(states, self.columns)

    def behavior(self, rng: np.random.Generator):
        """Random actions, each held for 1 to 8 steps."""
        action, left = None, 0

        def policy(env) -> np.ndarray:
            nonlocal action, left
            if left == 0:
                action = rng.uniform(-1, 1, self.action_space.shape).astype(np.float32)
                left = int(rng.integers(1, 9))
            left -= 1
            return action

        return policy


def split_columns(states: np.ndarray, columns: dict[str, int]) -> dict[str, np.ndarray]:
    """States (n, d) as name -> (n, entries), by the entries of each column."""
    parts = np.split(states, np.cumsum([*columns.values()])[:-1], axis=1) if columns else []
    return dict(zip(columns, parts, strict=True))


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Pictures (..., H, W, 3) uint8 as (..., size, size, 3): the mean of each pixel's area."""

    def overlap(n: int) -> np.ndarray:  # (size, n): share of output pixel i that is input pixel j
        edges, at = np.arange(size + 1) * n / size, np.arange(n)
        low, high = edges[:-1, None], edges[1:, None]
        return np.clip(np.minimum(high, at + 1) - np.maximum(low, at), 0, None) * size / n

    if frames.shape[-3:-1] == (size, size):
        return frames
    rows, columns = (overlap(n).astype(np.float32) for n in frames.shape[-3:-1])
    *many, height, width, channels = frames.shape
    lines = frames.astype(np.float32).reshape(*many, height, width * channels)
    small = columns @ (rows @ lines).reshape(*many, size, width, channels)
    return np.rint(small).astype(np.uint8)


ENVS = {"dotworld": DotWorld, "tworoom": TwoRoom, "reacher": Reacher, "pusht": PushT, "cube": Cube}
for _cls in ENVS.values():
    gym.register(f"smwm/{_cls.__name__}-v0", f"{__name__}:{_cls.__name__}", max_episode_steps=200)
