"""Sensorimotor world models in one file (Ivashkov, Balestriero, Schölkopf, arXiv 2606.20104).

A latent world model learned from offline, reward-free transitions (o_t, a_t, o_{t+1}), pixels in.
An encoder f, a forward model g and an inverse model h are trained together, from scratch:

    z_t = f(o_t)                           the latent                         `encode`
    L_fwd = ||g(z_t, a_t) - z_{t+1}||^2    predict the next latent            `predict`
    L_inv = ||h(z_t, z_{t+1}) - a_t||^2    tell the action from two latents   `infer_action`
    L = L_fwd + lam * L_inv

L_fwd alone is solved by a constant latent. L_inv alone prevents that, with no target network, no
stop-gradient and no frozen encoder: a latent must hold what the action moves. What is neither moved
by the action nor predictable costs L_fwd and is dropped. To act, the cross-entropy method searches
actions whose imagined end is nearest to the latent of a goal image, in a receding horizon.

    python smwm.py train --env dotworld                       # collect, train, probe and plan
    python smwm.py train --env dotworld --method forward      # what happens without L_inv
    python smwm.py train --env dotworld --variant distractor  # a dot that is not in the action
    python smwm.py figures runs/dotworld-smwm-s0

Measured for the first command, on 2 cores of an AMD EPYC (AVX2, no bf16), Python 3.11, torch 2.13:
22 s with imports and data, R2 0.9996, effective dimension 2.15, 100 of 100 planning tasks solved
(random policy 12), seed 0. The README has the other variants and methods.

Shape letters: B batch, T time, S image side, D latent, A action block (k env actions of m entries,
flattened), N samples and K elites of the cross-entropy method, H planning horizon in blocks.

Differs from the paper
    1. The encoder is three patchifying convolutions with batch norm on 64 x 64 frames instead of a
       ViT-Tiny on 224 x 224, the forward model a residual MLP modulated by the action instead of a
       transformer: it trains on a laptop's CPU.
    2. Actions are standardised per entry, and the planner keeps them inside the action bounds.
    3. All tasks of a batch see the same noise in the planner, so a batch gives what one task alone
       gives.
    4. Success is also reported over the tasks that are not solved at the start.
    5. A training window holds four frames, three transitions, which halves the encoding.

Does not do
    Rewards, online data, discrete actions, frame stacking, decoding of latents to pixels.
"""

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import mujoco
import numpy as np
import pymunk
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import envs

# ------------------------------------------------------------------------------------------------
# Model
# ------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """f: an image to its latent, (B, S, S, 3) uint8 -> (B, D); S a multiple of 16."""

    def __init__(self, *, size: int, channels: int, hidden: int, dim: int):
        super().__init__()
        layers, width = [], 3
        for kernel, out in ((size // 16, channels), (2, 2 * channels), (2, 4 * channels)):
            layers += [nn.Conv2d(width, out, kernel, stride=kernel), nn.BatchNorm2d(out), nn.GELU()]
            width = out
        self.body = nn.Sequential(*layers, nn.Flatten()).to(memory_format=torch.channels_last)
        self.head = nn.Sequential(nn.Linear(16 * width, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(self.body(obs.permute(0, 3, 1, 2).float().div_(-255).add_(1)))


class Block(nn.Module):
    """A residual MLP block, its normalisation shifted, scaled and gated by the action (AdaLN)."""

    def __init__(self, *, width: int, act_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(act_dim, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, act: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(act).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class ForwardModel(nn.Module):
    """g: the next latent from latent and action, (..., D), (..., A) -> (..., D)."""

    def __init__(self, *, dim: int, act_dim: int, width: int, depth: int):
        super().__init__()
        self.embed_z, self.embed_act = nn.Linear(dim, width), nn.Linear(act_dim, width)
        self.blocks = nn.ModuleList(Block(width=width, act_dim=act_dim) for _ in range(depth))
        self.out = nn.Linear(width, dim)

    def forward(self, z: Tensor, act: Tensor) -> Tensor:
        x = self.embed_z(z) + self.embed_act(act)
        for block in self.blocks:
            x = block(x, act)
        return z + self.out(x)


class InverseModel(nn.Module):
    """h: the action between two latents, (..., D), (..., D) -> (..., A)."""

    def __init__(self, *, dim: int, act_dim: int, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * dim, width), nn.GELU(), nn.Linear(width, act_dim))

    def forward(self, z: Tensor, z_next: Tensor) -> Tensor:
        return self.net(torch.cat([z, z_next], dim=-1))


class WorldModel(nn.Module):
    """The three networks. Actions are standardised; `act_mean` and `act_std` (A,) say how."""

    def __init__(self, *, act_dim, size=64, channels=32, hidden=512, dim=128, width=256, depth=3):
        super().__init__()
        self.encoder = Encoder(size=size, channels=channels, hidden=hidden, dim=dim)
        self.forward_model = ForwardModel(dim=dim, act_dim=act_dim, width=width, depth=depth)
        self.inverse_model = InverseModel(dim=dim, act_dim=act_dim, width=width)
        self.register_buffer("act_mean", torch.zeros(act_dim))
        self.register_buffer("act_std", torch.ones(act_dim))

    def encode(self, obs: Tensor) -> Tensor:
        """Images (..., S, S, 3) uint8 to latents (..., D)."""
        return self.encoder(obs.flatten(0, -4)).unflatten(0, obs.shape[:-3])

    def predict(self, z: Tensor, act: Tensor) -> Tensor:
        """Latents (..., D) and action blocks (..., A) to the next latents (..., D)."""
        return self.forward_model(z, act)

    def infer_action(self, z: Tensor, z_next: Tensor) -> Tensor:
        """Two consecutive latents (..., D) to the action block between them (..., A)."""
        return self.inverse_model(z, z_next)

    def rollout(self, z: Tensor, acts: Tensor) -> Tensor:
        """Imagine: latents (..., D) and blocks (..., H, A) to latents (..., H+1, D), z first."""
        latents = [z]
        for act in acts.unbind(-2):
            latents.append(self.predict(latents[-1], act))
        return torch.stack(torch.broadcast_tensors(*latents), dim=-2)


# ------------------------------------------------------------------------------------------------
# Losses: (model, obs (B, T, S, S, 3) uint8, act (B, T-1, A)) -> loss to minimise, named parts
# ------------------------------------------------------------------------------------------------


def prediction_losses(model: WorldModel, obs: Tensor, act: Tensor) -> tuple[Tensor, dict]:
    """The latents (B, T, D) of a batch, and its forward and inverse losses, per element."""
    z = model.encode(obs)
    z_now, z_next = z[:, :-1], z[:, 1:]
    # L_fwd = mean ||g(z_t, a_t) - z_{t+1}||^2; the target is NOT detached: the encoder learns from
    # both sides, and only L_inv keeps it from making both constant.
    forward_loss = F.mse_loss(model.predict(z_now, act), z_next)
    # L_inv = mean ||h(z_t, z_{t+1}) - a_t||^2
    inverse_loss = F.mse_loss(model.infer_action(z_now, z_next), act)
    std = z.detach().float().flatten(0, 1).var(0).mean().sqrt()  # of an entry; 0 when collapsed
    return z, {"forward_loss": forward_loss, "inverse_loss": inverse_loss, "latent_std": std}


def smwm(model: WorldModel, obs: Tensor, act: Tensor, *, lam: float = 10.0, generator=None):
    """The method: L = L_fwd + lam * L_inv."""
    _, parts = prediction_losses(model, obs, act)
    return parts["forward_loss"] + lam * parts["inverse_loss"], parts


def forward(model: WorldModel, obs: Tensor, act: Tensor, *, lam: float = 0.0, generator=None):
    """The ablation: L = L_fwd. It collapses. (L_inv is reported; its head is not trained.)"""
    _, parts = prediction_losses(model, obs, act)
    return parts["forward_loss"], parts


def sigreg(model: WorldModel, obs: Tensor, act: Tensor, *, lam: float = 0.1, generator=None):
    """The baseline LeWorldModel (arXiv 2603.19312): L = L_fwd + lam * SIGReg(z), no inverse term.

    SIGReg (LeJEPA, arXiv 2511.08544) pushes the latents of a time step towards N(0, I): the mean,
    over random unit directions u, of the Epps-Pulley statistic of the projections x = u.z,

        n * integral of |phi(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt,   phi(t) = mean exp(i t x),

    by the trapezoid rule on 17 points of [0, 3], doubled since the integrand is even in t.
    """
    z, parts = prediction_losses(model, obs, act)
    u = torch.randn(z.shape[-1], 1024, generator=generator, device=z.device)
    x = z.float() @ F.normalize(u, dim=0)  # (B, T, 1024)
    t = torch.linspace(0, 3, 17, device=z.device)
    gauss = torch.exp(-t.square() / 2)
    tx = x[..., None] * t
    error = (tx.cos().mean(0) - gauss).square() + tx.sin().mean(0).square()  # (T, 1024, 17)
    parts["sigreg_loss"] = 2 * len(z) * torch.trapezoid(error * gauss, t).mean()
    return parts["forward_loss"] + lam * parts["sigreg_loss"], parts


METHODS = {"smwm": smwm, "sigreg": sigreg, "forward": forward}


# ------------------------------------------------------------------------------------------------
# Data
# ------------------------------------------------------------------------------------------------


class InputError(ValueError):
    """Bad input, in one line: what was expected, what came, what to do."""


def expect(condition, message: str) -> None:
    if not condition:
        raise InputError(message)


@contextlib.contextmanager
def replacing(path: Path):
    """Yield a temporary name beside `path`; on success it becomes `path`, on failure it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def progress(items, label: str, total: int | None = None):
    """Pass items through with rate and time left: a bar on a terminal, plain lines elsewhere."""
    total = len(items) if total is None else total
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, label, total, leave=False, dynamic_ncols=True)
        return
    start = shown = time.perf_counter()
    for n, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if now - shown > 10 or n == total:
            rate = n / (now - start)
            left = f"{rate:.3g}/s, {(total - n) / rate:.0f} s left"
            print(f"{label}: {n}/{total}, {left}", file=sys.stderr, flush=True)
            shown = now


def make_env(env: str, variant: str, size: int) -> envs.PixelEnv:
    return envs.ENVS[env](**envs.ENVS[env].VARIANTS[variant], size=size)


def collect(
    env: str,
    variant: str,
    *,
    size: int = 64,
    frames: int = 20_000,
    episode: int = 50,
    seed: int = 0,
    root: str | Path = "data",
) -> Path:
    """Collect episodes with the environment's behaviour policy, in a process per core.

    Returns the folder, named after all that determines its content; if it is there, nothing is
    done. Episode i is seeded by (seed, i) alone, so the number of processes does not matter.
    """
    count = max(1, round(frames / episode))
    meta = dict(env=env, variant=variant, size=size, episodes=count, episode_frames=episode)
    meta |= dict(seed=seed, numpy=np.__version__, mujoco=mujoco.__version__, pymunk=pymunk.version)
    meta["envs.py"] = hashlib.sha256(Path(envs.__file__).read_bytes()).hexdigest()
    key = hashlib.sha256(json.dumps(meta).encode()).hexdigest()[:8]
    path = Path(root) / f"{env}-{variant}-{size}px-{count}x{episode}-s{seed}-{key}"
    if path.exists():
        return path
    world = make_env(env, variant, size)
    shapes = {
        "frames": ((count * episode, size, size, 3), np.uint8),
        "actions": ((count * episode, *world.action_space.shape), np.float32),
        "states": ((count * episode, *world.state().shape), np.float64),
    }
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with replacing(path) as folder:
        folder.mkdir()
        for name, (shape, dtype) in shapes.items():
            array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
                with open(folder / f"{name}.npy", "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        np.save(folder / "episode_ends.npy", np.arange(1, count + 1) * episode)
        write_json(folder / "meta.json", meta)
        job = partial(_collect_episode, folder, env, variant, size, episode, seed)
        pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        try:
            chunk = max(1, min(8, count // (4 * workers)))
            episodes = pool.map(job, range(count), chunksize=chunk)
            for _ in progress(episodes, f"collect {env}", count):
                pass
        except BrokenExecutor as error:
            raise InputError(
                f"collect {env}: a process died ({error}); is there memory?"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return path


def describe(data: "Dataset", s: "Settings", span: int = 25) -> None:
    """Print what windows of `span` env steps hold: how far things move, how many tasks they are."""
    world, states = make_env(s.env, s.variant, s.size), data.states.numpy()
    print(f"{len(states)} frames, {len(data.ends)} episodes; over windows of {span} steps:")
    if np.diff(data.ends, prepend=0).max() <= span:
        return print("  no episode is that long")
    rows = np.concatenate([data.windows(split, span).numpy() for split in data.episodes])
    print(f"  {'change of':<30}{'median':>10}{'90%':>10}{'share that moves':>20}")
    for name, values in world.probe_targets(states).items():
        change = np.linalg.norm(values[rows + span] - values[rows], axis=1)
        middle, high = np.quantile(change, (0.5, 0.9))
        moves = 100 * np.mean(change > 0.05 * np.linalg.norm(np.ptp(values, axis=0)))
        print(f"  {name:<30}{middle:10.3f}{high:10.3f}{moves:19.1f}%")
    some = rows[:: max(1, len(rows) // 2000)]
    solved = [world.is_success(states[row], states[row + span]) for row in some]
    print(f"  windows that are solved at the start: {100 * np.mean(solved):.1f}%")
    random = run_random_policy(data, s) >= 0
    low, high = interval95(random)
    result = f"{percent(random):.1f}% [{low:.0f}, {high:.0f}]"
    print(f"  random policy on {len(random)} planning tasks: {result}")


def _collect_episode(folder, env, variant, size, episode, seed, index) -> None:
    world = make_env(env, variant, size)
    here = slice(index * episode, (index + 1) * episode)
    frames, actions, states = (
        np.load(folder / f"{name}.npy", mmap_mode="r+")[here]
        for name in ("frames", "actions", "states")
    )
    rng = np.random.default_rng([seed, index])
    obs, info = world.reset(seed=int(rng.integers(2**31)))
    policy = world.behavior(rng)
    for t in range(episode):
        frames[t], states[t] = obs, info["state"]
        if t < episode - 1:
            actions[t] = np.clip(policy(world), -1, 1)
            obs, _, _, _, info = world.step(actions[t])


class Dataset:
    """Episodes of frames (F, S, S, 3) uint8, actions (F, m) and states (F, d), memory-mapped.

    Row t of `actions` was taken after frame t. A fixed tenth of the episodes is held out. Raises
    InputError, naming the file and the fault, for anything that is not a whole dataset.
    """

    def __init__(self, path: str | Path):
        self.path = path = Path(path)
        try:
            self.meta = json.loads((path / "meta.json").read_text())
            load = partial(np.load, mmap_mode="c", allow_pickle=False)
            names = ("frames", "actions", "states", "episode_ends")
            frames, actions, states, ends = (load(path / f"{name}.npy") for name in names)
        except (OSError, ValueError) as error:
            message = f"{path}: expected a dataset folder, got: {error}; collect it anew"
            raise InputError(message) from error
        found = f"{frames.dtype} {frames.shape}"
        square = frames.ndim == 4 and frames.shape[1:] == (frames.shape[1], frames.shape[1], 3)
        good = frames.dtype == np.uint8 and square and frames.size
        expect(good, f"{path}/frames.npy: expected uint8 (F, S, S, 3), F > 0, got {found}")
        rows = len(frames)
        for name, array in (("actions", actions), ("states", states)):
            where = f"{path}/{name}.npy: expected"
            good = array.ndim == 2 and len(array) == rows
            expect(good, f"{where} ({rows}, n), a row a frame, got {array.shape}")
            bad = np.append(np.flatnonzero(~np.isfinite(array).all(1)), rows)[0]
            expect(bad == rows, f"{where} finite numbers, row {bad} is {array[bad % rows]}")
        good = (
            ends.ndim == 1 and len(ends) and ends[-1] == rows and np.diff(ends, prepend=0).min() > 0
        )
        expect(good, f"{path}/episode_ends.npy: expected increasing ends up to {rows}, got {ends}")
        self.frames, self.actions, self.states = map(torch.from_numpy, (frames, actions, states))
        self.size, self.ends = frames.shape[1], ends
        held_out = np.random.default_rng(0).permutation(len(ends)) < max(1, len(ends) // 10)
        self.episodes = {"train": np.flatnonzero(~held_out), "test": np.flatnonzero(held_out)}

    def windows(self, split: str, span: int) -> Tensor:
        """First rows of all windows that stay within one episode for `span` further rows."""
        starts = np.append(0, self.ends[:-1])
        rows = [np.arange(starts[i], self.ends[i] - span) for i in self.episodes[split]]
        rows = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        longest = np.diff(self.ends, prepend=0).max()
        expect(
            len(rows),
            f"{self.path}: expected {split} episodes of more than {span} frames, the longest of "
            f"{len(self.ends)} has {longest}; use longer ones or a smaller --block or --sequence",
        )
        return torch.from_numpy(rows)

    def blocks(self, rows: Tensor, count: int, block: int) -> Tensor:
        """The `count` action blocks from rows (B,) on, (B, count, A)."""
        at = rows[:, None] + torch.arange(block * count)
        return self.actions[at].reshape(len(rows), count, -1)

    def batch(self, rows: Tensor, time: int, block: int) -> tuple[Tensor, Tensor]:
        """Windows from rows (B,) on: obs (B, T, S, S, 3), `block` rows apart, act (B, T-1, A)."""
        at = rows[:, None] + block * torch.arange(time)
        return self.frames[at], self.blocks(rows, time - 1, block)


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def train(model: WorldModel, data: Dataset, s: "Settings", log=None) -> dict:
    """Train `model` in place, on the device it is on; returns the metrics of the last steps.

    `log(row)`, if given, is called with a dict a logged step. Raises InputError if the loss
    is not finite.
    """
    device = model.act_mean.device
    rows = data.windows("train", s.block * (s.sequence - 1))
    acts = data.blocks(data.windows("train", s.block), 1, s.block)[:, 0]
    model.act_mean.copy_(acts.mean(0))
    model.act_std.copy_(acts.std(0).clamp_min(1e-6))
    weights, decay = model.parameters(), s.weight_decay
    optimizer = torch.optim.AdamW(weights, lr=s.lr, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, s.lr, s.steps, pct_start=0.1)
    sampler = torch.Generator().manual_seed(s.seed)
    generator = torch.Generator(device).manual_seed(s.seed)
    loss_fn = partial(METHODS[s.method], lam=s.lam, generator=generator)
    model.train()
    start, recent = time.perf_counter(), []
    for step in progress(range(1, s.steps + 1), f"train {s.method}"):
        at = rows[torch.randint(len(rows), (s.batch,), generator=sampler)]
        obs, act = (x.to(device, non_blocking=True) for x in data.batch(at, s.sequence, s.block))
        with autocast(device, s.precision):
            loss, parts = loss_fn(model, obs, (act - model.act_mean) / model.act_std)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(torch.stack([loss.detach(), *(p.detach() for p in parts.values())]))
        if step % s.log_every == 0 or step == s.steps:
            means = torch.stack(recent).mean(0).tolist()
            recent, seconds = [], time.perf_counter() - start
            row = {"step": step, "seconds": seconds, "lr": schedule.get_last_lr()[0]}
            row |= dict(zip(("loss", *parts), means, strict=True))
            message = f"training: the loss became {means[0]} by step {step}; try a smaller --lr"
            expect(math.isfinite(means[0]), message)
            if log:
                log(row)
    model.eval()
    rate = s.steps * s.batch * s.sequence / seconds
    metrics = {"steps": s.steps, "seconds": seconds, "frames_per_second": rate}
    return metrics | {name: row[name] for name in parts}


def autocast(device: torch.device, precision: str):
    """The mixed-precision context; "auto" is bfloat16 where the hardware multiplies it fast."""
    fast = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else True
    enabled = precision == "bf16" or (precision == "auto" and fast)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


# ------------------------------------------------------------------------------------------------
# Planning
# ------------------------------------------------------------------------------------------------


def cem(
    cost_fn,
    mean: Tensor,
    std: Tensor,
    *,
    samples: int = 300,
    elites: int = 30,
    iterations: int = 30,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The cross-entropy method, batched: minimise cost_fn over action sequences.

    mean, std: (B, H, A), the first search distribution of each task. cost_fn: (B, N, H, A) ->
    (B, N). Returns the final mean (B, H, A). All tasks see the same noise, so a batch gives what
    its tasks give one by one. Nothing here waits for the device.
    """
    for _ in range(iterations):
        # 1. sample around the mean; the mean itself is the first sample
        noise = torch.randn(samples, *mean.shape[1:], generator=generator, device=mean.device)
        noise[0] = 0
        acts = mean[:, None] + std[:, None] * noise  # (B, N, H, A)
        # 2. keep the K cheapest
        best = cost_fn(acts).topk(elites, largest=False).indices  # (B, K)
        elite = acts[torch.arange(len(acts), device=mean.device)[:, None], best]
        # 3. refit
        mean, std = elite.mean(1), elite.std(1)
    return mean


@torch.inference_mode()
def plan(
    model: WorldModel,
    obs: Tensor,
    goal_obs: Tensor,
    *,
    horizon: int = 5,
    samples: int = 300,
    elites: int = 30,
    iterations: int = 30,
    low: float = -1.0,
    high: float = 1.0,
    seed: int = 0,
    rows: int = 6000,
) -> Tensor:
    """Action blocks (B, H, A), in env units within [low, high], towards goal images.

    obs, goal_obs: (B, S, S, 3) uint8. The cost of a sequence is the squared distance of the last
    imagined latent to the goal's. Both images are encoded once. On a CPU the tasks are planned in
    groups of `rows` samples, which fit its cache; the result does not depend on it.
    """
    device, dim = model.act_mean.device, len(model.act_mean)
    z, z_goal = model.encode(torch.stack([obs, goal_obs]).to(device))  # (B, D) each
    lower, upper = ((bound - model.act_mean) / model.act_std for bound in (low, high))

    def cost(z, z_goal, acts):  # (B, D), (B, D), (B, N, H, A) -> (B, N)
        acts = acts.clamp(lower, upper)
        z = z[:, None]  # (B, 1, D), broadcast over the samples
        for act in acts.unbind(2):
            z = model.predict(z, act)
        return (z - z_goal[:, None]).square().sum(-1)

    group = max(1, rows // samples) if device.type == "cpu" else len(z)
    sizes, plans = dict(samples=samples, elites=elites, iterations=iterations), []
    for z_part, goal_part in zip(z.split(group), z_goal.split(group), strict=True):
        mean = torch.zeros(len(z_part), horizon, dim, device=device)
        generator = torch.Generator(device).manual_seed(seed)
        cost_fn = partial(cost, z_part, goal_part)
        plans.append(cem(cost_fn, mean, torch.ones_like(mean), generator=generator, **sizes))
    return torch.cat(plans).clamp(lower, upper) * model.act_std + model.act_mean


def evaluate_planning(model: WorldModel, data: Dataset, s: "Settings") -> tuple[dict, dict]:
    """Plan in the real environment: from frames of held-out episodes to later frames of the same.

    A task is solved when the environment's criterion holds at any step within the budget. Every
    method and seed meets the same tasks. Returns the metrics and the trajectories: states
    (tasks, budget+1, d), goals (tasks, d), first solved step or -1.
    """
    starts, goals, goal_obs = planning_tasks(data, s)
    sizes = {name: getattr(s, name) for name in ("horizon", "samples", "elites", "iterations")}
    spent = []

    def planner(obs: Tensor, active: np.ndarray, step: int) -> Tensor:
        began = time.perf_counter()
        acts = plan(model, obs, goal_obs[active], **sizes, seed=step).cpu()
        spent.append((time.perf_counter() - began) / len(active))
        return acts.reshape(len(active), s.horizon * s.block, -1)

    states, solved = run_tasks(planner, starts, goals, s, "plan")
    solved_random = run_random_policy(data, s)
    metrics = {"tasks": len(solved), "unsolved_tasks": int((solved != 0).sum())}
    for suffix, among in (("", solved >= -1), ("_unsolved", solved != 0)):
        metrics[f"success{suffix}"] = percent(solved[among] >= 0)
        metrics[f"interval95{suffix}"] = interval95(solved[among] >= 0)
        metrics[f"random{suffix}"] = percent(solved_random[among] >= 0)
    metrics["seconds_per_plan"] = float(np.mean(spent)) if spent else None
    return metrics, {"states": states, "goals": goals, "solved": solved}


def planning_tasks(data: Dataset, s: "Settings") -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Start states, goal states and goal frames; they depend on the dataset alone."""
    rows = data.windows("test", s.goal_offset).numpy()
    rows = np.random.default_rng(0).permutation(rows)[: s.tasks]
    goals = rows + s.goal_offset
    return data.states[rows].numpy(), data.states[goals].numpy(), data.frames[goals]


def run_random_policy(data: Dataset, s: "Settings") -> np.ndarray:
    """First solved step of each task, or -1, under uniform random actions."""
    rng, steps = np.random.default_rng(1), s.horizon * s.block

    def policy(obs: Tensor, active: np.ndarray, step: int) -> np.ndarray:
        return rng.uniform(-1, 1, (len(active), steps, data.actions.shape[1]))

    return run_tasks(policy, *planning_tasks(data, s)[:2], s, "random policy")[1]


def run_tasks(policy, starts: np.ndarray, goals: np.ndarray, s: "Settings", label: str):
    """Run policy(obs, active, step) -> (n, steps, m) on all tasks until solved or out of budget.

    obs (n, S, S, 3) shows the tasks that are not solved yet, `active` (n,) numbers them. Returns
    states (tasks, budget+1, d) and the first solved step of each, or -1.
    """
    worlds = [make_env(s.env, s.variant, s.size) for _ in starts]
    states, solved = np.repeat(starts[:, None], s.budget + 1, axis=1), np.full(len(starts), -1)
    for task, world in enumerate(worlds):
        _, info = world.reset(options={"state": starts[task], "goal": goals[task]})
        solved[task] = 0 if info["success"] else -1
    for step in progress(range(0, s.budget, s.horizon * s.block), label):
        active = np.flatnonzero(solved < 0)
        if not len(active):
            break
        frames = np.stack([worlds[task].render_state(states[task, step]) for task in active])
        plans = policy(torch.from_numpy(frames), active, step)
        for task, actions in zip(active, plans, strict=True):
            for t, action in enumerate(actions[: s.budget - step], step + 1):
                info = worlds[task].advance(np.asarray(action))
                states[task, t:] = info["state"]
                if info["success"]:
                    solved[task] = t
                    break
    return states, solved


def percent(hits: np.ndarray) -> float | None:
    return 100 * float(np.mean(hits)) if len(hits) else None


def interval95(hits: np.ndarray) -> list[float] | None:
    """Wilson's 95% interval of a success rate, in percent."""
    n = len(hits)
    if n == 0:
        return None
    z, p = 1.96, float(np.mean(hits))
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [100 * (centre + sign * half) / (1 + z * z / n) for sign in (-1, 1)]


# ------------------------------------------------------------------------------------------------
# Probes
# ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def encode_all(model: WorldModel, frames: Tensor, batch: int = 500) -> Tensor:
    """Frames (F, S, S, 3) uint8 to latents (F, D) on the CPU."""
    device = model.act_mean.device
    return torch.cat([model.encode(part.to(device)).float().cpu() for part in frames.split(batch)])


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = train.mean(0), train.std(0).clamp_min(1e-12)
    return (train - mean) / std, (test - mean) / std


def r2(prediction: Tensor, target: Tensor) -> float:
    """Coefficient of determination, averaged over components, (n, j), (n, j) -> scalar."""
    residual = (prediction - target).square().sum(0)
    return float((1 - residual / (target - target.mean(0)).square().sum(0).clamp_min(1e-12)).mean())


def linear_probe(x: Tensor, y: Tensor, x_test: Tensor, ridge: float = 1e-3) -> Tensor:
    """Ridge regression on standardised inputs (n, D) and targets (n, j): predictions for x_test."""
    x, y, x_test = x.double(), y.double(), x_test.double()
    weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y)
    return x_test @ weights


def mlp_probe(x: Tensor, y: Tensor, x_test: Tensor, *, epochs: int = 200, seed: int = 0) -> Tensor:
    """An MLP 256-128 (Adam 1e-3, batch 512, stopped early on a tenth): predictions for x_test."""
    x, y, x_test = x.float(), y.float(), x_test.float()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(128, y.shape[1]))
    order = torch.randperm(len(x), generator=generator)
    held, rest = order[: len(x) // 10], order[len(x) // 10 :]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    best, best_error, patience = None, math.inf, 0
    for _ in range(epochs):
        for part in rest[torch.randperm(len(rest), generator=generator)].split(512):
            optimizer.zero_grad()
            F.mse_loss(net(x[part]), y[part]).backward()
            optimizer.step()
        with torch.no_grad():
            error = F.mse_loss(net(x[held]), y[held]).item()
        patience = 0 if error < best_error else patience + 1
        if error < best_error:
            best, best_error = {k: v.clone() for k, v in net.state_dict().items()}, error
        if patience >= 12:
            break
    net.load_state_dict(best)
    with torch.no_grad():
        return net(x_test).double()


def principal_components(z: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (D,) in falling order and directions (D, D), a column each, of latents (n, D)."""
    values, vectors = torch.linalg.eigh(torch.cov(z.double().T))
    return values.flip(0).clamp_min(0), vectors.flip(1)


def effective_dim(spectrum: Tensor) -> float:
    """Participation ratio (sum v)^2 / sum v^2 of the variances v along the principal components.

    It is n for n equal variances and needs no threshold: a small variance adds little.
    """
    return float(spectrum.sum() ** 2 / spectrum.square().sum().clamp_min(1e-300))


def evaluate_latent(model: WorldModel, data: Dataset, s: "Settings") -> tuple[dict, dict, dict]:
    """Probes, losses, spectrum and rollouts on held-out episodes.

    Returns the metrics "probe" and "latent", and the arrays that the figures need.
    """
    rng, device = np.random.default_rng(0), model.act_mean.device
    picks = [
        np.sort(rng.permutation(data.windows(split, 0))[:count])
        for split, count in (("train", s.probe_train), ("test", s.probe_test))
    ]
    z, z_test = (encode_all(model, data.frames[rows]) for rows in picks)
    x, x_test = standardise(z.double(), z_test.double())
    world = make_env(s.env, s.variant, s.size)
    truth = world.probe_targets(data.states.numpy())
    probe = {"linear": {}, "mlp": {}}
    for name, values in progress(truth.items(), "probe"):
        y, y_test = standardise(*(torch.from_numpy(values[rows]) for rows in picks))
        probe["linear"][name] = r2(linear_probe(x, y, x_test), y_test)
        probe["mlp"][name] = r2(mlp_probe(x, y, x_test, epochs=s.probe_epochs), y_test)
    spectrum, directions = principal_components(z_test)
    rows = data.windows("test", s.block * (s.sequence - 1))
    obs, act = data.batch(rows[:: 1 + len(rows) // 500], s.sequence, s.block)
    act = (act.to(device) - model.act_mean) / model.act_std
    with torch.inference_mode():
        _, losses = prediction_losses(model, obs.to(device), act)
    # Rollouts: imagined against encoded latents, squared error relative to the latent's variance.
    steps = 10
    rows = data.windows("test", s.block * steps)
    rows = rows[np.sort(rng.permutation(len(rows))[:500])]
    obs, act = data.batch(rows, steps + 1, s.block)
    encoded = encode_all(model, obs.flatten(0, 1)).unflatten(0, (len(rows), steps + 1))
    with torch.inference_mode():
        act = (act.to(device) - model.act_mean) / model.act_std
        imagined = model.rollout(encoded[:, 0].to(device), act).cpu()
    error = (imagined - encoded).square().mean((0, 2)) / z_test.var(0).mean().clamp_min(1e-30)
    latent = {
        "effective_dim": effective_dim(spectrum),
        "components_95": int((spectrum.cumsum(0) < 0.95 * spectrum.sum()).sum()) + 1,
        "spectrum": spectrum.tolist(),
        "rollout_error": error[1:].tolist(),
        **{name: value.item() for name, value in losses.items()},  # on held-out windows
    }
    mean = z_test.double().mean(0)
    arrays = {
        "components": (z_test - mean) @ directions[:, :4],
        "encoded": (encoded - mean) @ directions[:, :2],
        "imagined": (imagined - mean) @ directions[:, :2],
        **{f"target {name}": values[picks[1]] for name, values in truth.items()},
    }
    return probe, latent, {name: np.asarray(value, np.float32) for name, value in arrays.items()}


# ------------------------------------------------------------------------------------------------
# Figures: from a run's saved results only
# ------------------------------------------------------------------------------------------------


def figure_training(run: Path):
    """The losses of log.csv over the steps."""
    with open(run / "log.csv") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    fig, axes = new_figure(1, 3, 9, 2.6)
    titles = [("forward_loss", "$L_{fwd}$"), ("inverse_loss", "$L_{inv}$")]
    for ax, (name, title) in zip(axes.flat, [*titles, ("latent_std", "spread")], strict=True):
        ax.semilogy([r["step"] for r in rows], [r[name] for r in rows])
        ax.set(xlabel="step", title=title)
    return fig


def figure_spectrum(run: Path):
    """The variance of the held-out latents along their principal components."""
    latent = json.loads((run / "metrics.json").read_text())["latent"]
    share = np.array(latent["spectrum"][:16]) / sum(latent["spectrum"])
    fig, axes = new_figure(1, 1, 4.5, 2.8)
    axes[0, 0].bar(np.arange(1, len(share) + 1), 100 * share)
    title = f"effective dimension {latent['effective_dim']:.2f}"
    axes[0, 0].set(xlabel="principal component", ylabel="% of variance", title=title)
    return fig


def figure_latent(run: Path):
    """Two coordinates of the world, and the latent's leading components, in the same colours."""
    saved = np.load(run / "latents.npz")
    world, label = [], []
    for name in (name for name in saved.files if name.startswith("target ")):
        for axis, values in zip("xyz?", saved[name].T[:, :3000], strict=False):
            world.append(values)
            label.append(f"{name[7:]} {axis}" if saved[name].shape[1] > 1 else name[7:])
    fig, axes = new_figure(1, 4, 9, 2.5)
    for i in (0, 1):
        for ax, (x, y), title in (
            (axes[0, i], world[:2], "world"),
            (axes[0, 2 + i], saved["components"][:3000, :2].T, "latent"),
        ):
            ax.scatter(x, y, 3, world[i], cmap="viridis")
            ax.set(title=f"{title}, colour: {label[i]}", aspect="equal")
            names = label if title == "world" else ("PC 1", "PC 2")
            ax.set(xlabel=names[0], ylabel=names[1])
            ax.title.set_fontsize(9)
    return fig


def figure_rollout(run: Path):
    """Encoded against imagined trajectories, and the imagination's error by step."""
    saved, metrics = np.load(run / "latents.npz"), json.loads((run / "metrics.json").read_text())
    fig, axes = new_figure(1, 2, 9, 3.6)
    path, error = axes.flat
    for name, style in (("encoded", "-o"), ("imagined", "--x")):
        for n, points in enumerate(saved[name][:: len(saved[name]) // 5 + 1]):
            path.plot(*points.T, style, color=f"C{n}", ms=5, label=None if n else name)
    path.set(xlabel="PC 1", ylabel="PC 2", title="ten steps, held-out episodes")
    path.legend()
    curve = metrics["latent"]["rollout_error"]
    error.plot(range(1, len(curve) + 1), curve, "-o")
    error.set(xlabel="imagined steps", title="squared error / latent variance", ylim=(0, None))
    return fig


def figure_plan(run: Path):
    """A filmstrip a task: the start, what happened, and the goal. Unsolved tasks, if any, last."""
    s, saved = load_settings(run), np.load(run / "plans.npz")
    world, solved = make_env(s.env, s.variant, 128), saved["solved"]
    tasks = [*np.flatnonzero(solved > 0)[:4], *np.flatnonzero(solved < 0)[:2]]
    fig, axes = new_figure(max(1, len(tasks)), 8, 9, 1.35 * max(1, len(tasks)))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for row, task in zip(axes, tasks, strict=False):
        end = solved[task] if solved[task] > 0 else s.budget
        steps = sorted(set(np.linspace(0, end, 7).round().astype(int)))
        for ax, step in zip(row, steps, strict=False):
            ax.imshow(world.render_state(saved["states"][task, step]))
            ax.set_title("start" if step == 0 else f"step {step}", fontsize=8)
        for ax in row[len(steps) : 7]:
            ax.axis("off")
        row[7].imshow(world.render_state(saved["goals"][task]))
        row[7].set_title("goal", fontsize=8, color="green" if solved[task] > 0 else "red")
        row[0].set_ylabel("solved" if solved[task] > 0 else "not solved", fontsize=8)
    return fig


def figure_environments():
    """A contact sheet: each environment along an episode of its behaviour policy."""
    fig, axes = new_figure(len(envs.ENVS), 8, 9, 5.7)
    for row, (name, cls) in zip(axes, envs.ENVS.items(), strict=True):
        world = cls(size=160)
        world.reset(seed=3)
        policy = world.behavior(np.random.default_rng(3))
        row[0].set_ylabel(name)
        for ax in row:
            ax.imshow(world.render_state(world.state()))
            ax.set(xticks=[], yticks=[])
            for _ in range(1 if name == "dotworld" else 6):
                world.advance(policy(world))
    return fig


def new_figure(rows: int, columns: int, width: float, height: float):
    from matplotlib.figure import Figure  # imported here: training does not need it

    fig = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False)


FIGURES = {
    "training": (figure_training, "log.csv"),
    "spectrum": (figure_spectrum, "latents.npz"),
    "latent": (figure_latent, "latents.npz"),
    "rollout": (figure_rollout, "latents.npz"),
    "plan": (figure_plan, "plans.npz"),
}


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def setting(default, group: str, text: str):
    return dataclasses.field(default=default, metadata={"group": group, "help": text})


@dataclass(frozen=True)
class Settings:
    """Every setting there is. PRESETS change the defaults by environment, the command line both."""

    env: str = setting("dotworld", "what", f"environment: {', '.join(envs.ENVS)}")
    variant: str = setting("", "what", "variant of the environment; empty: its first")
    method: str = setting("smwm", "method", f"training loss: {', '.join(METHODS)}")
    seed: int = setting(0, "method", "seed of the weights and of the batches")
    out: str = setting("", "method", "run folder; empty: runs/<env>[-<variant>]-<method>-s<seed>")
    data: str = setting("", "method", "dataset folder; empty: collect one, or reuse it, in data/")
    frames: int = setting(20_000, "data", "frames to collect")
    episode: int = setting(50, "data", "frames of an episode")
    size: int = setting(64, "data", "side of a frame in pixels, a multiple of 16")
    data_seed: int = setting(0, "data", "seed of the collected data")
    block: int = setting(5, "model", "env actions in a block (k)")
    dim: int = setting(128, "model", "entries of the latent (D)")
    channels: int = setting(32, "model", "channels of the encoder's first layer; then 2x, 4x")
    hidden: int = setting(512, "model", "width of the encoder's head")
    width: int = setting(256, "model", "width of forward and inverse model")
    depth: int = setting(3, "model", "blocks of the forward model")
    steps: int = setting(5000, "training", "optimiser steps")
    batch: int = setting(128, "training", "windows in a batch (B)")
    sequence: int = setting(4, "training", "frames in a window (T), one block apart")
    lr: float = setting(1e-3, "training", "peak learning rate of AdamW, one cycle")
    weight_decay: float = setting(1e-4, "training", "weight decay of AdamW")
    lam: float = setting(10.0, "training", "weight of the anti-collapse term (sigreg: 0.1)")
    log_every: int = setting(50, "training", "steps between rows of log.csv")
    probe_train: int = setting(25_000, "probe", "embeddings to fit the probes on")
    probe_test: int = setting(5_000, "probe", "held-out embeddings to score them on")
    probe_epochs: int = setting(200, "probe", "epochs of the MLP probe, at most")
    tasks: int = setting(100, "planning", "planning tasks")
    goal_offset: int = setting(25, "planning", "env steps from start to goal in the data")
    budget: int = setting(50, "planning", "env steps to reach the goal")
    horizon: int = setting(5, "planning", "blocks to plan, all executed before planning again (H)")
    samples: int = setting(300, "planning", "CEM samples (N)")
    elites: int = setting(30, "planning", "CEM elites (K)")
    iterations: int = setting(30, "planning", "CEM iterations")
    device: str = setting("auto", "machine", "auto (CUDA if there), cpu, cuda, cuda:1, ...")
    precision: str = setting("auto", "machine", "auto (bf16 where it is fast), fp32, bf16")
    threads: int = setting(0, "machine", "CPU threads; 0: torch's choice")

    def __post_init__(self):
        variants = getattr(envs.ENVS.get(self.env), "VARIANTS", {})
        if not self.variant and variants:
            object.__setattr__(self, "variant", next(iter(variants)))
        known = {"env": envs.ENVS, "variant": variants, "method": METHODS}
        for name, names in (known | {"precision": ("auto", "fp32", "bf16")}).items():
            value = getattr(self, name)
            expect(value in names, f"--{name}: expected one of {', '.join(names)}, got {value!r}")
        zero = {"seed", "data_seed", "threads", "depth", "weight_decay", "lam"}
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in zero else 1
            good = field.type is str or value >= (0 if field.type is float else least)
            option = f"--{field.name.replace('_', '-')}"
            good = good and (field.type is str or value < math.inf)
            expect(good, f"{option}: expected a number of at least {least}, got {value}")
        expect(self.size % 16 == 0, f"--size: expected a multiple of 16, got {self.size}")
        expect(self.sequence > 1, f"--sequence: expected at least 2 frames, got {self.sequence}")
        good = 2 <= self.elites <= self.samples
        expect(good, f"--elites: expected 2 to --samples {self.samples}, got {self.elites}")


# What an environment, or one of its variants, sets differently from the defaults above.
PRESETS = {
    "dotworld": dict(
        block=1, dim=64, channels=16, hidden=256, width=128, depth=2, steps=250, batch=32, lr=6e-3,
        log_every=10, probe_epochs=25, samples=100, elites=10, iterations=10,
    ),
    **{
        f"dotworld-{v}": dict(steps=1500, batch=64, samples=300, elites=30, iterations=20)
        for v in [*envs.DotWorld.VARIANTS][1:]
    },
    "dotworld-sprite-xyt": dict(
        frames=40_000, steps=2000, batch=64, lr=3e-3, lam=100.0,
        samples=300, elites=30, iterations=20,
    ),
    "tworoom": dict(frames=100_000, episode=100),
    "reacher": dict(frames=100_000, episode=100),
    "pusht": dict(frames=200_000, episode=100),
    "cube": dict(frames=150_000, episode=100),
}  # fmt: skip


def settings_for(**given) -> Settings:
    """Settings from what the command line gave, over the preset of the environment and variant."""
    env = given.get("env", Settings.env)
    preset = PRESETS.get(env, {}) | PRESETS.get(f"{env}-{given.get('variant')}", {})
    if given.get("method") == "sigreg":
        preset = preset | {"lam": 0.1}
    return Settings(**preset | given)


def build_model(s: Settings, act_dim: int) -> WorldModel:
    names = ("size", "channels", "hidden", "dim", "width", "depth")
    sizes = {name: getattr(s, name) for name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        return WorldModel(act_dim=act_dim, **sizes)


def pick_device(s: Settings) -> torch.device:
    if s.threads:
        torch.set_num_threads(s.threads)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if s.device == "auto" else s.device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        message = f"--device {name}: not usable here ({reason}); use --device cpu"
        raise InputError(message) from error


def load_settings(run: Path) -> Settings:
    try:
        return Settings(**json.loads((run / "settings.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        message = f"{run}: expected a run folder with settings.json, got: {error}"
        raise InputError(message) from error


def save_checkpoint(path: Path, model: WorldModel, s: Settings) -> None:
    content = {"smwm": 1, "settings": dataclasses.asdict(s), "act_dim": len(model.act_mean)}
    with replacing(path) as temporary:
        torch.save(content | {"model": model.state_dict()}, temporary)


def load_checkpoint(path: str | Path, device="cpu") -> tuple[WorldModel, Settings]:
    """The trained model, in evaluation mode, and its settings; InputError on any other file."""
    expect(Path(path).exists(), f"{path}: expected a checkpoint, found none; let training finish")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        s = Settings(**content["settings"])
        model = build_model(s, content["act_dim"]).to(device)
        model.load_state_dict(content["model"])
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"{path}: expected a whole smwm checkpoint, got: {reason}; train anew"
        raise InputError(message) from error
    return model.eval(), s


def open_dataset(s: Settings) -> Dataset:
    collected = dict(size=s.size, frames=s.frames, episode=s.episode, seed=s.data_seed)
    data = Dataset(s.data or collect(s.env, s.variant, **collected))
    message = f"{data.path}: expected frames of --size {s.size}, got {data.size}"
    expect(data.size == s.size, f"{message}; set --size {data.size}")
    return data


def machine(device: torch.device) -> dict:
    """What the numbers of a run were measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        names = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
        name = (*names, platform.processor() or platform.machine())[0]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": name, "threads": torch.get_num_threads(), **versions}


def update_metrics(run: Path, **parts) -> None:
    path = run / "metrics.json"
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | parts)


def run_train(s: Settings, overwrite: bool) -> None:
    variant = "" if s.variant == next(iter(envs.ENVS[s.env].VARIANTS)) else f"-{s.variant}"
    run = Path(s.out or f"runs/{s.env}{variant}-{s.method}-s{s.seed}")
    device = pick_device(s)
    if run.exists():
        expect(
            overwrite, f"{run}: exists already; choose another --out, or --overwrite to replace it"
        )
        ours = (run / "settings.json").exists()
        expect(ours, f"{run}: not a run folder (no settings.json); it is left as it is")
        shutil.rmtree(run)
    run.mkdir(parents=True)  # before the long work: an unwritable place is told now
    try:
        data = open_dataset(s)
    except BaseException:
        run.rmdir()
        raise
    write_json(run / "settings.json", dataclasses.asdict(s))
    model = build_model(s, s.block * data.actions.shape[1]).to(device)
    with open(run / "log.csv", "w", newline="") as file:
        writer = csv.writer(file)

        def log(row: dict) -> None:
            if row["step"] == min(s.log_every, s.steps):
                writer.writerow(row)
            writer.writerow(f"{value:.6g}" for value in row.values())
            file.flush()

        metrics = train(model, data, s, log)
    save_checkpoint(run / "checkpoint.pt", model, s)
    parameters = sum(p.numel() for p in model.parameters())
    update_metrics(run, train=metrics | {"parameters": parameters}, machine=machine(device))
    spent = f"{s.steps} steps in {metrics['seconds']:.1f} s"
    print(f"{run}: trained {parameters:,} parameters, {spent}")
    run_probe(run, s, model, data)
    run_plan(run, s, model, data)


def run_probe(run: Path, s: Settings, model: WorldModel, data: Dataset) -> None:
    probe, latent, arrays = evaluate_latent(model, data, s)
    with replacing(run / "latents.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    update_metrics(run, probe=probe, latent=latent)
    controlled = make_env(s.env, s.variant, s.size).controlled
    print(f"{'probe R2 on held-out episodes':<32}{'linear':>8}{'MLP':>8}")
    for name in probe["linear"]:
        note = "" if name in controlled else " (not controlled)"
        print(f"  {name + note:<30}{probe['linear'][name]:8.4f}{probe['mlp'][name]:8.4f}")
    count = f"{latent['components_95']} components hold 95% of the variance"
    print(f"effective dimension of the latent {latent['effective_dim']:.2f} ({count})")
    print(f"spread of the latent {latent['latent_std']:.3g}")
    print(f"squared rollout error after 5 steps / latent variance {latent['rollout_error'][4]:.4f}")


def run_plan(run: Path, s: Settings, model: WorldModel, data: Dataset) -> None:
    planning, arrays = evaluate_planning(model, data, s)
    with replacing(run / "plans.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    update_metrics(run, planning=planning)
    for suffix, label in (("", "all tasks"), ("_unsolved", "not solved at the start")):
        n, result = planning[f"{suffix[1:] + '_' if suffix else ''}tasks"], "none"
        if n:
            low, high = planning[f"interval95{suffix}"]
            result = f"{planning[f'success{suffix}']:.1f}% [{low:.0f}, {high:.0f}]"
            result += f", random policy {planning[f'random{suffix}']:.1f}%"
        print(f"planning, {label} (n = {n}): {result}")


def run_collect(s: Settings) -> None:
    data = open_dataset(s)
    print(data.path)
    describe(data, s)


def run_bench(s: Settings) -> None:
    """Print speeds on this machine: environments, collection, training and planning."""

    def rate(function, least: float = 2.0) -> float:
        function()
        start, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < least:
            function()
            count += 1
        return count / spent

    device = pick_device(s)
    print(machine(device))
    for name, cls in envs.ENVS.items():
        world = cls(size=s.size)
        world.reset(seed=0)
        action = np.zeros(world.action_space.shape)
        speed = rate(lambda w=world, a=action: w.step(a))
        print(f"{name:<10}{speed:8.0f} env steps with a frame / s on one core")
    world = make_env(s.env, s.variant, s.size)
    act_dim = s.block * world.action_space.shape[0]
    model = build_model(s, act_dim).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{s.env} model: {parameters:,} parameters, block {s.block}, latent {s.dim}")
    shape = (s.batch, s.sequence, s.size, s.size, 3)
    obs = torch.randint(256, shape, dtype=torch.uint8, device=device)
    act = torch.randn(s.batch, s.sequence - 1, act_dim, device=device)

    def step() -> float:
        with autocast(device, s.precision):
            loss, _ = METHODS[s.method](model, obs, act, lam=s.lam)
        loss.backward()
        return loss.item()

    frames = s.batch * s.sequence
    print(f"  train: {frames * rate(step):.0f} frames / s, batches of {s.batch} x {s.sequence}")
    model.eval()
    sizes = dict(horizon=s.horizon, samples=s.samples, elites=s.elites, iterations=s.iterations)
    for tasks in (1, 100):
        frame = obs.flatten(0, 1)[:1].expand(tasks, -1, -1, -1)
        seconds = 1 / rate(lambda f=frame: plan(model, f, f, **sizes).cpu())
        print(f"  plan {tasks:>3} at once: {seconds / tasks:.4f} s a task, {sizes}")


def run_figures(run: Path | None) -> None:
    figures = {Path("runs/environments.png"): figure_environments}
    if run:
        load_settings(run)
        figures = {
            run / "figures" / f"{name}.png": partial(draw, run)
            for name, (draw, needs) in FIGURES.items()
            if (run / needs).exists()
        }
        expect(
            figures, f"{run}: expected a finished run, found nothing to draw; let training finish"
        )
    for path, draw in figures.items():
        with replacing(path) as temporary:
            draw().savefig(temporary, format="png")
        print(path)


ON_RUNS = {  # what each command does, and the groups of settings it takes
    "probe": ("probe the latent of a finished run", "probe machine"),
    "plan": ("plan with a finished run", "planning machine"),
    "figures": ("draw a finished run into its figures/; without one, the environments", ""),
}
COMMANDS = {
    "train": (
        "collect, train, probe and plan",
        "what method data model training probe planning machine",
    ),
    "collect": ("collect a dataset; say where it is and what it holds", "what data"),
    "bench": ("measure speeds on this machine", "what model training planning machine"),
    **ON_RUNS,
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, made from Settings; --help shows the defaults of the --env beside it."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--env", default=Settings.env)
    defaults = PRESETS.get(peek.parse_known_args(argv)[0].env, {})
    tall = partial(argparse.HelpFormatter, max_help_position=26, width=100)
    title = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="smwm.py", description=title, formatter_class=tall)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command, (text, groups) in COMMANDS.items():
        sub = commands.add_parser(command, help=text, description=text, formatter_class=tall)
        sub.usage = f"smwm.py {command} {'run ' if command in ON_RUNS else ''}[options]"
        if command in ON_RUNS:
            many = "?" if command == "figures" else None
            sub.add_argument("run", type=Path, nargs=many, help="run folder that train left")
        for field in dataclasses.fields(Settings):
            if field.metadata["group"] in groups.split():
                default = (
                    "the run's" if command in ON_RUNS else defaults.get(field.name, field.default)
                )
                sub.add_argument(
                    f"--{field.name.replace('_', '-')}",
                    type=field.type,
                    default=argparse.SUPPRESS,
                    metavar=field.type.__name__,
                    help=field.metadata["help"] + (f" [{default}]" if default != "" else ""),
                )
        if command == "train":
            text = "replace the run folder if it exists"
            sub.add_argument("--overwrite", action="store_true", help=text)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    given = vars(parse(sys.argv[1:] if argv is None else argv))
    command, run = given.pop("command"), given.pop("run", None)
    try:
        if command == "train":
            overwrite = given.pop("overwrite")
            run_train(settings_for(**given), overwrite)
        elif command == "collect":
            run_collect(settings_for(**given))
        elif command == "bench":
            run_bench(settings_for(**given))
        elif command == "figures":
            run_figures(run)
        else:
            model, s = load_checkpoint(run / "checkpoint.pt")
            s = dataclasses.replace(s, **given)
            model.to(pick_device(s))
            {"probe": run_probe, "plan": run_plan}[command](run, s, model, open_dataset(s))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, no permission
        print(f"error: {error}; free that place or choose another", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left to be taken for whole", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
