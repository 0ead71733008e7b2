"""Five pixel environments for sensorimotor world models: they step, draw, save and restore.

    env = gym.make("smwm/DotWorld-v0")          # after `import envs`
    obs, info = env.reset(seed=0)               # obs: (64, 64, 3) uint8; info: state, success
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

Every environment is a `gymnasium.Env` that observes its own picture, drawn in numpy: no OpenGL, no
display, no GPU, the same bytes on every machine. On top of Gymnasium's interface each has `state`,
`set_state`, `render_state`, `is_success`, `probe_targets` and `behavior` (see `PixelEnv`). To take
one environment elsewhere, copy its class, `PixelEnv` and, for the two-dimensional ones, `Canvas`.
"""

import math

import gymnasium as gym
import numpy as np

# ------------------------------------------------------------------------------------------------
# Base class and canvas
# ------------------------------------------------------------------------------------------------


class PixelEnv(gym.Env):
    """What the five environments share; a subclass writes the members that raise below.

    The observation is a (size, size, 3) uint8 frame, the action a float vector in [-1, 1]^m (values
    outside are clipped). `reset(options={"state": s, "goal": g})` starts at state s and judges
    against the state g; without a goal, `success` is False, the reward 0 and no episode ends.

    Raises ValueError on an action, a state or a goal of wrong shape or with NaN, and on an unknown
    option; the message says what was expected and what came.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    goal = None

    def __init__(self, action_dim: int, *, size: int = 64, render_mode: str | None = None):
        if not (isinstance(size, int | np.integer) and size >= 8):
            raise ValueError(f"size: expected a whole number of pixels, 8 or more, got {size!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode: expected 'rgb_array' or None, got {render_mode!r}")
        self.size, self.render_mode = int(size), render_mode
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    # -- what a subclass writes -------------------------------------------------------------------

    def state(self) -> np.ndarray:
        """The full simulator state, one float64 vector: all that the next steps depend on."""
        raise NotImplementedError

    def _set_state(self, state: np.ndarray) -> None:
        """Restore a checked state vector."""
        raise NotImplementedError

    def _initial_state(self) -> np.ndarray:
        """A random start, drawn from `self.np_random`."""
        raise NotImplementedError

    def _step(self, action: np.ndarray) -> None:
        """Advance the simulation by one checked and clipped action."""
        raise NotImplementedError

    def render_state(self, state: np.ndarray) -> np.ndarray:
        """The (size, size, 3) uint8 picture of a state, a pure function of it."""
        raise NotImplementedError

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        """Whether `state` reaches `goal` by the published criterion."""
        raise NotImplementedError

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """States (n, d) to the quantities a latent should hold, name to (n, j); angles as sin, cos."""
        raise NotImplementedError

    def behavior(self, rng: np.random.Generator):
        """The data-collection policy for one episode, `policy(env) -> action`."""
        raise NotImplementedError

    # -- Gymnasium --------------------------------------------------------------------------------

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
        return self._observe()

    def step(self, action: np.ndarray):
        action = self._checked(action, "action", self.action_space.shape)
        self._step(np.clip(action, -1.0, 1.0))
        obs, info = self._observe()
        return obs, float(info["success"]), info["success"], False, info

    def render(self) -> np.ndarray | None:
        return self.render_state(self.state()) if self.render_mode == "rgb_array" else None

    def _observe(self):
        state = self.state()
        success = self.goal is not None and bool(self.is_success(state, self.goal))
        return self.render_state(state), {"state": state, "success": success}

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
        edges = np.roll(vertices, -1, axis=0) - vertices
        normals = np.stack([edges[:, 1], -edges[:, 0]], 1)
        normals /= np.sqrt((normals**2).sum(1, keepdims=True))
        if (normals[0] * (vertices[2] - vertices[0])).sum() > 0:  # make them point outwards
            normals = -normals
        offsets = (normals * vertices).sum(1)

        def distance(x, y):
            planes = [nx * x + ny * y - c for (nx, ny), c in zip(normals, offsets, strict=True)]
            return np.maximum.reduce(planes)

        self._paint(distance, vertices, 0.0, color)

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
    The paper's toy testbed: coloured dots of radius 2 px on a white 64 x 64 canvas, or one arrow
    with a pose (the sprite world). What the action moves should be kept by a sensorimotor latent;
    what moves on its own should be dropped. All dots stay inside the canvas and do not overlap: a
    displacement is cut at the border, and a move that would end on another dot does not happen.

    ## Action Space
    `Box(-1, 1, (m,), float32)`, displacements in units of 16 px (angles: pi/4 rad). Two entries
    (x, y) for each independent dot, two for each coupled pair, then none for random and static
    dots; for the sprite one entry for each letter of `sprite` ("x", "xy", "xyt"; "none" has one
    entry that moves nothing, since an action space cannot be empty).

    ## Observation Space
    `Box(0, 255, (size, size, 3), uint8)`: the frame; y points down.

    ## Rewards
    1 on a step that reaches the goal, else 0.

    ## Starting State
    Dots uniform in [2, 62] px without overlap, the second dot of a pair within 16 px of the first in
    x and in y; sprite: x, y uniform in [6, 58] px, angle uniform in [-pi, pi].

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
    SPRITE_RADIUS, TURN = 6.0, math.pi / 4  # px, rad
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
                    groups.append((f"{kind} {n + 1}", [[2 * d + axis for d in dots] for axis in (0, 1)]))
                    first += len(dots)
            free = [name for name, _ in groups if name.startswith(("dot", "pair"))]
            self.dots, self.coordinates = first, 2 * first
        self._groups = groups
        self._moved = [entries for name, entries in groups if name in free]
        self._random = [
            entries for name, entries in groups if name not in free and not name.startswith("static")
        ]
        self.controlled = tuple(  # the probe targets that the action moves
            target for name in free for target in (("sin angle", "cos angle") if name == "angle" else (name,))
        )
        margin = self.RADIUS if sprite is None else self.SPRITE_RADIUS
        self._low = np.full(self.coordinates, margin)
        self._high = np.full(self.coordinates, self.CANVAS - margin)
        self._reach = np.full(self.coordinates, self.REACH)
        if sprite is not None:
            self._low[2], self._high[2], self._reach[2] = -np.inf, np.inf, self.TURN
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
            displacement = [rng.uniform(a, b) if a < b else a for a, b in zip(low, high, strict=True)]
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
            arrow = np.array([[6, 0], [0, -5], [0, 5]]), np.array([[0, -2], [-6, -2], [-6, 2], [0, 2]])
            for part, color in zip(arrow, (self.COLORS[0], self.COLORS[1]), strict=True):
                canvas.polygon(part @ np.array([[c, s], [-s, c]]) + state[:2], color)
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


ENVS = {"dotworld": DotWorld}
gym.register("smwm/DotWorld-v0", "envs:DotWorld", max_episode_steps=50)
