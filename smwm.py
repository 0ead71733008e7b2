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
    python smwm.py train --env pusht                          # or tworoom, reacher, cube
    python smwm.py train --data mine.npz                      # your own data: train and probe
    python smwm.py train --env gymnasium:Pendulum-v1          # any environment of Gymnasium
    python smwm.py figures runs/dotworld-smwm-s0
    python smwm.py report runs/*                              # tables, published values beside

Measured for the first command, on 2 cores of an AMD EPYC (AVX-512, bf16), Python 3.11, torch 2.13:
10 s with imports and data, R2 0.9999, effective dimension 2.04, 100 of 100 planning tasks solved
(random policy 11), seed 0. The README has the other environments and methods.

Shape letters: B batch, T time, S image side, D latent, A action block (k env actions of m entries,
flattened), C context (what the forward model sees: D entries, more with a history), N samples and
K elites of the cross-entropy method, H planning horizon in blocks.

Differs from the paper
    1. The encoder is three convolutions with batch norm on 64 x 64 frames, on Cube four on 96 x 96,
       instead of a ViT-Tiny on 224 x 224, the forward model a residual MLP modulated by the action
       instead of a transformer: it trains on a laptop's CPU. `--encoder vit --size 224` is the
       paper's pair.
    2. Actions are standardised per entry, and the planner keeps them inside the action bounds.
    3. All tasks of a batch see the same noise in the planner, so a batch gives what one task alone
       gives.
    4. Success is also reported over the tasks that are not solved at the start. Tasks start at
       least two blocks into an episode, so that a model with a history has its past.
    5. A training window holds four frames, three transitions, which halves the encoding.
    6. One lam for all five environments, 10 (a variant of dot world has 100).
    7. Presets with options that are off by default, the paper's setting: Reacher, Push-T and Cube
       have `--history 3`, Push-T and Cube `--whiten` (a goal distance in which small components of
       the latent count more), Push-T `--optimizer muon` for the weights of linear layers and
       `--search components` (the planner searches along the principal components of the data's
       action blocks).
    8. SIGReg takes 256 projections a step, LeWorldModel 1024.

Does not do
    Rewards, online data, discrete actions, decoding of latents to pixels, image augmentation.
    torch.compile and CUDA graphs. Under torchrun, SIGReg and, on CPUs, the batch norms see the part
    of the batch that a process has. An interrupted collection starts anew.
"""

import argparse
import contextlib
import csv
import dataclasses
import errno
import glob
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
import threading
import time
import warnings
import zipfile
import zlib
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import gymnasium
import mujoco
import numpy as np
import pymunk
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import envs

# ------------------------------------------------------------------------------------------------
# Model
# ------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """f: an image to its latent, (B, S, S, 3) uint8 -> (B, D); S a multiple of 16.

    Three strided convolutions, `refine` 3 x 3 ones after the first, then an MLP on 4 x 4 features.
    """

    def __init__(self, *, size: int, channels: int, refine: int, hidden: int, dim: int):
        super().__init__()
        first, more = (size // 16, channels), refine * [(1, channels)]
        layers, width = [], 3
        for stride, out in [first, *more, (2, 2 * channels), (2, 4 * channels)]:
            half = (stride + 1) // 2  # patches overlap by half a stride or more
            conv = nn.Conv2d(width, out, stride + 2 * half, stride=stride, padding=half)
            layers += [conv, nn.BatchNorm2d(out), nn.GELU()]
            width = out
        self.body = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.head = nn.Sequential(nn.Linear(16 * width, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(self.body(darkness(obs)).permute(0, 2, 3, 1).flatten(1))


def darkness(obs: Tensor) -> Tensor:
    """Images (B, S, S, 3) uint8 to (B, 3, S, S), white 0 and black 1; channels stay last in memory.

    Straight to the precision of the products: a float32 copy would be the largest tensor there is.
    """
    kind = obs.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    return (255 - obs).to(low).div_(255).permute(0, 3, 1, 2)


class ViT(nn.Module):
    """f as the paper has it, a ViT-Tiny: (B, S, S, 3) uint8 -> (B, D).

    12 layers of width 192 with 3 heads on patches of 14 px, or of 8 px for S < 112; the CLS token
    through an MLP with batch norm.
    """

    def __init__(self, *, size: int, dim: int, width: int = 192, depth: int = 12, heads: int = 3):
        super().__init__()
        patch = 14 if size >= 112 else 8
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.body = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.head = projector(width, dim)

    def forward(self, obs: Tensor) -> Tensor:
        x = self.patches(darkness(obs)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.body(x)[:, 0])


def projector(width: int, dim: int) -> nn.Sequential:
    norm = nn.BatchNorm1d(2048)
    return nn.Sequential(nn.Linear(width, 2048), norm, nn.GELU(), nn.Linear(2048, dim))


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
    """g: the next latent from the context and the action, (..., C), (..., A) -> (..., D)."""

    def __init__(self, *, dim: int, context_dim: int, act_dim: int, width: int, depth: int):
        super().__init__()
        self.dim = dim
        self.embed_z, self.embed_act = nn.Linear(context_dim, width), nn.Linear(act_dim, width)
        self.blocks = nn.ModuleList(Block(width=width, act_dim=act_dim) for _ in range(depth))
        self.out = nn.Linear(width, dim)

    def forward(self, context: Tensor, act: Tensor) -> Tensor:
        x = self.embed_z(context) + self.embed_act(act)
        for block in self.blocks:
            x = block(x, act)
        return context[..., -self.dim :] + self.out(x)


class TransformerBlock(nn.Module):
    """Causal attention and an MLP, each shifted, scaled and gated by the action (AdaLN-zero)."""

    def __init__(self, *, dim: int, heads: int, head_dim: int, hidden: int):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(dim, 3 * inner, bias=False), nn.Linear(inner, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x: Tensor, act: Tensor) -> Tensor:  # (B, T, D) each
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(act).chunk(6, dim=-1)
        y = self.norm(x) * (1 + scale) + shift
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + gate * self.out(y.transpose(1, 2).flatten(2))
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)


class TransformerForwardModel(nn.Module):
    """g as the paper has it: 6 blocks of 16 heads of 64 and an MLP of 2048 over the context's
    latents, a token each, every one modulated by the action that followed it."""

    def __init__(self, *, dim: int, context_dim: int, act_dim: int, depth: int = 6):
        super().__init__()
        self.dim, self.act_dim = dim, act_dim
        self.history = 1 + (context_dim - dim) // (dim + act_dim)
        embed = nn.Linear(act_dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim)
        self.embed_act = nn.Sequential(*embed)
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.history, dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(dim=dim, heads=16, head_dim=64, hidden=2048) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(dim), projector(dim, dim)

    def forward(self, context: Tensor, act: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(context.shape[:-1], act.shape[:-1])
        context, act = (x.expand(*shape, -1).flatten(0, -2) for x in (context, act))
        tokens = torch.cat([context, act], -1).unflatten(-1, (self.history, -1))
        z, acts = tokens.split((self.dim, self.act_dim), dim=-1)
        x, acts = z + self.positions, self.embed_act(acts)
        for block in self.blocks:
            x = block(x, acts)
        return self.head(self.norm(x[:, -1])).unflatten(0, shape)


class InverseModel(nn.Module):
    """h: the action between two latents, (..., D), (..., D) -> (..., A)."""

    def __init__(self, *, dim: int, act_dim: int, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * dim, width), nn.GELU(), nn.Linear(width, act_dim))

    def forward(self, z: Tensor, z_next: Tensor) -> Tensor:
        return self.net(torch.cat([z, z_next], dim=-1))


class WorldModel(nn.Module):
    """The three networks. Actions are standardised; `act_mean` and `act_std` (A,) say how.

    The forward model sees a context: z_t alone, the paper's setting, or with a `history` of h > 1
    the last h latents and the blocks between them, (z_{t-h+1}, a_{t-h+1}, ..., a_{t-1}, z_t)
    flattened to C = (h - 1) * (D + A) + D entries, zero where there is no past.
    """

    def __init__(
        self, *, act_dim, size=64, channels=32, refine=0, hidden=512, dim=128, width=256, depth=3,
        history=1, encoder="conv",
    ):  # fmt: skip
        super().__init__()
        self.size, self.dim = size, dim
        self.context_dim = (history - 1) * (dim + act_dim) + dim
        sizes = dict(dim=dim, width=width)
        inputs = dict(context_dim=self.context_dim, act_dim=act_dim)
        if encoder == "vit":
            self.encoder = ViT(size=size, dim=dim)
            self.forward_model = TransformerForwardModel(dim=dim, **inputs)
        else:
            self.encoder = Encoder(
                size=size, channels=channels, refine=refine, hidden=hidden, dim=dim
            )
            self.forward_model = ForwardModel(depth=depth, **inputs, **sizes)
        self.inverse_model = InverseModel(act_dim=act_dim, **sizes)
        self.register_buffer("act_mean", torch.zeros(act_dim))
        self.register_buffer("act_std", torch.ones(act_dim))
        # A batch norm after rare pixels has a small variance, against which the rounding of the
        # background counts: the encoder is right in the precision that it was trained in alone.
        self.bf16 = False

    def get_extra_state(self) -> Tensor:  # saved with the weights; no buffer, which a GPU waits for
        return torch.tensor(self.bf16)

    def set_extra_state(self, state: Tensor) -> None:
        self.bf16 = bool(state)

    def encode(self, obs: Tensor) -> Tensor:
        """Images (..., S, S, 3) uint8 to latents (..., D), in the precision of the training."""
        image, found = (self.size, self.size, 3), f"{obs.dtype} {tuple(obs.shape)}"
        if obs.dtype != torch.uint8 or obs.ndim < 4 or obs.shape[-3:] != image:
            raise ValueError(f"encode: expected a batch of {image} uint8 images, got {found}")
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            z = self.encoder(obs.flatten(0, -4))
        return z.float().unflatten(0, obs.shape[:-3])

    def predict(self, context: Tensor, act: Tensor) -> Tensor:
        """Contexts (..., C) and action blocks (..., A) to the next latents (..., D)."""
        return self.forward_model(context, act)

    def infer_action(self, z: Tensor, z_next: Tensor) -> Tensor:
        """Latents (..., D) a block apart to the action block between them (..., A)."""
        return self.inverse_model(z, z_next)

    def advance(self, context: Tensor, act: Tensor, z_next: Tensor) -> Tensor:
        """The next step's context (..., C): z_next itself without a history."""
        if self.context_dim == self.dim:
            return z_next
        return torch.cat([context[..., self.dim + act.shape[-1] :], act, z_next], dim=-1)

    def contexts(self, z: Tensor, act: Tensor) -> Tensor:
        """The context of every step, (B, T, D), (B, T-1, A) -> (B, T, C)."""
        contexts = [F.pad(z[:, 0], (self.context_dim - self.dim, 0))]
        for t in range(act.shape[1]):
            contexts.append(self.advance(contexts[-1], act[:, t], z[:, t + 1]))
        return torch.stack(contexts, dim=1)

    def observe(self, obs: Tensor, past: Tensor | None = None) -> Tensor:
        """The context (B, C) of the present. obs: (B, S, S, 3) uint8; or, with a history, the last
        T frames (B, T, S, S, 3), a block apart, and the `past` blocks (B, T-1, A) between them, in
        env units."""
        z = self.encode(obs)
        if past is None:
            z, past = z[:, None], z.new_zeros(len(z), 0, len(self.act_mean))
        return self.contexts(z, (past - self.act_mean) / self.act_std)[:, -1]

    def rollout(self, context: Tensor, acts: Tensor) -> Tensor:
        """Imagine: contexts (..., C), blocks (..., H, A) to latents (..., H+1, D), z_t first."""
        latents = [context[..., -self.dim :]]
        for act in acts.unbind(-2):
            latents.append(self.predict(context, act))
            context = self.advance(context, act, latents[-1])
        return torch.stack(latents, dim=-2)


def use_bf16(device: torch.device, precision: str) -> bool:
    """Whether to multiply in bfloat16; "auto": where the hardware does it fast."""
    fast = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else True
    return precision == "bf16" or (precision == "auto" and fast)


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device, precision))


# ------------------------------------------------------------------------------------------------
# Losses: (model, obs (B, T, S, S, 3) uint8, act (B, T-1, A)) -> loss to minimise, named parts
# ------------------------------------------------------------------------------------------------


def prediction_losses(model: WorldModel, obs: Tensor, act: Tensor):
    """The latents (B, T, D) of a batch, and its forward and inverse losses, per element."""
    z = model.encode(obs)
    # L_fwd = mean ||g(z_t, a_t) - z_{t+1}||^2; the target is NOT detached: the encoder learns from
    # both sides, and only L_inv keeps it from making both constant.
    z_hat = model.predict(model.contexts(z, act)[:, :-1], act)
    forward_loss = F.mse_loss(z_hat, z[:, 1:])
    # L_inv = mean ||h(z_t, z_{t+1}) - a_t||^2
    inverse_loss = F.mse_loss(model.infer_action(z[:, :-1], z[:, 1:]), act)
    std = z.detach().float().flatten(0, 1).var(0).mean().sqrt()  # of an entry; 0 when collapsed
    return z, {"forward_loss": forward_loss, "inverse_loss": inverse_loss, "latent_std": std}


def smwm(model, obs: Tensor, act: Tensor, *, lam=10.0, generator=None):
    """The method: L = L_fwd + lam * L_inv."""
    _, parts = prediction_losses(model, obs, act)
    return parts["forward_loss"] + lam * parts["inverse_loss"], parts


def forward(model, obs: Tensor, act: Tensor, *, lam=0.0, generator=None):
    """The ablation: L = L_fwd. It collapses. (L_inv is reported; its head is not trained.)"""
    _, parts = prediction_losses(model, obs, act)
    return parts["forward_loss"], parts


def sigreg(model, obs: Tensor, act: Tensor, *, lam=0.1, generator=None):
    """The baseline LeWorldModel (arXiv 2603.19312): L = L_fwd + lam * SIGReg(z), no inverse term.

    SIGReg (LeJEPA, arXiv 2511.08544) pushes the latents of a time step towards N(0, I): the mean,
    over random unit directions u, of the Epps-Pulley statistic of the projections x = u.z,

        n * integral of |phi(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt,   phi(t) = mean exp(i t x),

    by the trapezoid rule on 17 points of [0, 3], doubled since the integrand is even in t.
    """
    z, parts = prediction_losses(model, obs, act)
    u = torch.randn(z.shape[-1], 256, generator=generator, device=z.device)
    x = z.float() @ F.normalize(u, dim=0)  # (B, T, 256)
    t = torch.linspace(0, 3, 17, device=z.device)
    gauss = torch.exp(-t.square() / 2)
    tx = x[..., None] * t
    error = (tx.cos().mean(0) - gauss).square() + tx.sin().mean(0).square()  # (T, 256, 17)
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
    """Yield a temporary name beside `path`; on success it becomes `path`, on failure it goes.

    What a killed process left under such a name goes too.
    """

    def remove(temporary: Path) -> None:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            os.kill(int(left.name.split(".")[-2]), 0)
        except ProcessLookupError:
            remove(left)
        except (PermissionError, ValueError):
            pass  # somebody else's, or not ours at all
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


@contextlib.contextmanager
def in_turn(folder: Path):
    """Wait for other processes that make data in `folder`: it may be the same data, so look again
    afterwards. The lock goes with the process that holds it, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder}: another process makes data there, waiting for it", file=sys.stderr)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


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


def make_env(env: str, variant: str, size: int) -> envs.PixelEnv | envs.Adapted:
    if env.startswith("gymnasium:"):
        try:
            return envs.Adapted(env.removeprefix("gymnasium:"), size=size)
        except ValueError as error:
            raise InputError(f"--env {error}") from error
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
    meta |= {"gymnasium": gymnasium.__version__} if env.startswith("gymnasium:") else {}
    meta["envs.py"] = hashlib.sha256(Path(envs.__file__).read_bytes()).hexdigest()
    key = hashlib.sha256(json.dumps(meta).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", f"{env}-{variant}")
    path = Path(root) / f"{name}-{size}px-{count}x{episode}-s{seed}-{key}"
    if path.exists():
        return path
    world = make_env(env, variant, size)
    state, action = world.reset(seed=seed)[1]["state"], world.action_space.sample()
    meta |= {"columns": world.columns} if hasattr(world, "columns") else {}
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with in_turn(path.parent):
        if path.exists():  # made while this one waited
            return path
        with replacing(path) as folder:
            folder.mkdir()
            create_arrays(folder, count * episode, size, len(action), len(state))
            job = partial(_collect_episode, folder, env, variant, size, episode, seed)
            pool = ProcessPoolExecutor(workers, context, _start_worker)
            try:
                chunk = max(1, min(8, count // (4 * workers)))
                episodes = pool.map(job, range(count), chunksize=chunk)
                ends = [end for part in progress(episodes, f"collect {env}", count) for end in part]
            except BrokenExecutor as error:
                raise InputError(
                    f"collect {env}: a process died ({error}); is there memory?"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)
            np.save(folder / "episode_ends.npy", np.array(ends))
            write_json(folder / "meta.json", meta)
    return path


def create_arrays(folder: Path, rows: int, size: int, act_entries: int, state_entries: int):
    """Empty frames, actions and states, memory-mapped, their place on the disk taken."""
    arrays = []
    for name, shape, dtype in (
        ("frames", (rows, size, size, 3), np.uint8),
        ("actions", (rows, act_entries), np.float32),
        ("states", (rows, state_entries), np.float64),
    ):
        path = folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        arrays.append(array)
    return arrays


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and go when it goes, however it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def describe(data: "Dataset", s: "Settings", span: int = 25) -> None:
    """Print what windows of `span` env steps hold: how far things move, how many tasks they are."""
    print(f"{len(data.frames)} frames, {len(data.ends)} episodes; over windows of {span} steps:")
    if np.diff(data.ends, prepend=0).max() <= span:
        return print("  no episode is that long")
    rows = np.concatenate([data.windows(split, span).numpy() for split in data.episodes])
    print(f"  {'change of':<30}{'median':>10}{'90%':>10}{'share that moves':>20}")
    for name, values in data.targets(s).items():
        change = np.linalg.norm(values[rows + span] - values[rows], axis=1)
        middle, high = np.quantile(change, (0.5, 0.9))
        moves = 100 * np.mean(change > 0.05 * np.linalg.norm(np.ptp(values, axis=0)))
        print(f"  {name:<30}{middle:10.3f}{high:10.3f}{moves:19.1f}%")
    if world := data.world(s):
        some, states = np.random.default_rng(0).permutation(rows)[:2000], data.states.numpy()
        solved = [world.is_success(states[row], states[row + span]) for row in some]
        print(f"  windows that are solved at the start: {100 * np.mean(solved):.1f}%")
        random = run_random_policy(data, s) >= 0
        low, high = interval95(random)
        result = f"{percent(random):.1f}% [{low:.0f}, {high:.0f}]"
        print(f"  random policy on {len(random)} planning tasks: {result}")


def _collect_episode(folder, env, variant, size, episode, seed, index) -> list[int]:
    """Fill the rows of job `index`; returns where episodes end: after the last row, and before it
    where the environment ended one (never in the five, whose episodes end at a goal only)."""
    world = make_env(env, variant, size)
    here, ends = slice(index * episode, (index + 1) * episode), []
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
            obs, _, terminated, truncated, info = world.step(actions[t])
            if terminated or truncated:
                ends.append(here.start + t + 1)
                obs, info = world.reset()
    return [*ends, here.stop]


def import_data(source: str | Path, size: int, root: str | Path = "data") -> Path:
    """Other people's data as a dataset folder of `size` px, made once, in chunks of rows.

    Takes an .npz (frames, actions, episode_ends, and states if any), an HDF5 file as of the
    LeWorldModel collection (see `read_hdf5`), or a dataset folder with frames of another size.
    Frames (F, H, W, 3) uint8 of any H and W are resized by area. Returns the folder.
    """
    source = Path(source)
    expect(source.exists(), f"{source}: expected a dataset, found nothing; check --data")
    stat = (source / "frames.npy" if source.is_dir() else source).stat()
    key = repr((str(source.resolve()), stat.st_size, stat.st_mtime_ns, size)).encode()
    path = Path(root) / f"{source.stem}-{size}px-{hashlib.sha256(key).hexdigest()[:8]}"
    if path.exists():
        return path
    readers = {".npz": read_npz, ".h5": read_hdf5, ".hdf5": read_hdf5, "": read_folder}
    kind = "" if source.is_dir() else source.suffix
    expect(kind in readers, f"{source}: expected a folder, .npz, .h5 or .hdf5; convert it to one")
    try:
        with in_turn(path.parent), readers[kind](source) as whole:
            if path.exists():  # made while this one waited
                return path
            with replacing(path) as folder:
                folder.mkdir(parents=True)
                _write_imported(folder, source, size, *whole)
                try:
                    Dataset(folder)  # refuses what is not whole
                except InputError as error:
                    raise InputError(str(error).replace(str(folder), str(source))) from error
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError) or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError(f"{source}: expected a whole dataset, got: {error}") from error
    return path


def _write_imported(folder: Path, source: Path, size: int, shape, chunks, actions, states, ends):
    """What a reader gave of `source`, as the arrays of a dataset folder of `size` px."""
    good = len(shape) == 4 and shape[3] == 3 and shape[0] and actions.ndim == 2
    where = f"{source}: expected frames (F, H, W, 3), F > 0, and actions (F, m),"
    expect(good, f"{where} got {tuple(shape)} and {actions.shape}")
    rows = shape[0]
    for name, array in {"actions": actions, **states}.items():
        where = f"{source}: expected {rows} rows of {name}, one a frame,"
        expect(len(array) == rows, f"{where} got {len(array)}")
    columns = {name: math.prod(array.shape[1:]) for name, array in states.items()}
    actions = actions.astype(np.float32)
    actions[ends[(ends > 0) & (ends <= rows)] - 1] = 0  # not used, and often NaN
    sizes = actions.shape[1], sum(columns.values())
    into, acts, stacked = create_arrays(folder, rows, size, *sizes)
    acts[:], done, at = actions, 0, 0
    for name, width in columns.items():
        stacked[:, at : at + width] = states[name].reshape(rows, -1)
        at += width
    total = math.ceil(rows / CHUNK)
    for frames in progress(chunks(CHUNK), f"read {source.name}", total):
        message = f"{source}: expected uint8 frames, got {frames.dtype}"
        expect(frames.dtype == np.uint8, f"{message}; store them as 0 to 255")
        into[done : done + len(frames)] = envs.resize(frames, size)
        done += len(frames)
    np.save(folder / "episode_ends.npy", ends)
    meta = {"source": str(source), "columns": columns}
    if (source / "meta.json").exists():  # of one of our environments, say
        meta = json.loads((source / "meta.json").read_text()) | meta | {"size": size}
    write_json(folder / "meta.json", meta)


CHUNK = 1000  # rows in memory at a time


@contextlib.contextmanager
def read_npz(source: Path):
    """Frames are read from the archive as a stream: they need not fit in memory."""
    arrays = np.load(source, allow_pickle=False)
    archive = zipfile.ZipFile(source)
    missing = {"frames", "actions", "episode_ends"} - {*arrays.files}
    expect(not missing, f"{source}: expected frames, actions and episode_ends, no {missing} there")
    with archive.open("frames.npy") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0
        header = header if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_major, dtype = header(file)
        good = not (column_major or dtype.hasobject)
        expect(good, f"{source}: expected numbers in C order in frames, got {dtype}")
        row = math.prod(shape[1:]) * dtype.itemsize

        def chunks(count: int):
            for start in range(0, shape[0], count):
                n = min(count, shape[0] - start)
                yield np.frombuffer(file.read(n * row), dtype).reshape(n, *shape[1:])

        states = {"states": arrays["states"]} if "states" in arrays.files else {}
        yield shape, chunks, arrays["actions"], states, arrays["episode_ends"]


@contextlib.contextmanager
def read_hdf5(source: Path):
    """One row a step: `pixels` (F, H, W, 3), `action` (F, m), any other numbers as states; episodes
    by `ep_len` and `ep_offset`, or by a column that numbers them (stable-worldmodel 0.1.1)."""
    try:
        import h5py  # only for such files: pip install h5py
    except ImportError as error:
        raise InputError(f"{source}: reading HDF5 needs h5py; pip install h5py") from error
    with h5py.File(source, "r") as file:
        missing = {"pixels", "action"} - {*file}
        expect(not missing, f"{source}: expected pixels and action, no {missing} there")
        pixels, index = file["pixels"], [name for name in EPISODE_COLUMNS if name in file]
        if "ep_len" in file:
            ends = np.cumsum(file["ep_len"][:])
            starts = file["ep_offset"][:] if "ep_offset" in file else ends - file["ep_len"][:]
            good = np.array_equal(starts, ends - file["ep_len"][:])
            expect(good, f"{source}: expected episodes one after the other, ep_offset says not so")
        else:
            expect(index, f"{source}: expected ep_len, or one of {', '.join(EPISODE_COLUMNS)}")
            numbers = np.ravel(file[index[0]][:])
            ends = np.append(np.flatnonzero(np.diff(numbers)) + 1, len(numbers))
        others = [name for name in file if name not in {"pixels", "action", "ep_len", "ep_offset"}]
        others = [name for name in others if name not in (*EPISODE_COLUMNS, "step_idx")]
        states = {
            name: file[name][:]
            for name in others
            if file[name].dtype.kind in "biuf" and len(file[name].shape) in (1, 2)
        }

        def chunks(count: int):
            for start in range(0, len(pixels), count):
                yield pixels[start : start + count]

        yield pixels.shape, chunks, file["action"][:], states, ends


EPISODE_COLUMNS = ("episode_idx", "ep_idx", "episode_index", "episode_id")


@contextlib.contextmanager
def read_folder(source: Path):
    load = partial(np.load, mmap_mode="r", allow_pickle=False)
    frames, actions, ends = (
        load(source / f"{name}.npy") for name in ("frames", "actions", "episode_ends")
    )
    there = (source / "states.npy").exists()
    states = {"states": load(source / "states.npy")} if there else {}

    def chunks(count: int):
        for start in range(0, len(frames), count):
            yield frames[start : start + count]

    yield frames.shape, chunks, actions, states, ends


class Dataset:
    """Episodes of frames (F, S, S, 3) uint8, actions (F, m) and states (F, d), memory-mapped.

    Row t of `actions` was taken after frame t. `states` has no entries where they are not known.
    A fixed tenth of the episodes is held out. Raises InputError, naming the file and the fault,
    for anything that is not a whole dataset.
    """

    def __init__(self, path: str | Path):
        self.path = path = Path(path)
        try:
            meta = path / "meta.json"
            self.meta = json.loads(meta.read_text()) if meta.exists() else {}
            load = partial(np.load, mmap_mode="r", allow_pickle=False)
            names = ("frames", "actions", "episode_ends")
            frames, actions, ends = (load(path / f"{name}.npy") for name in names)
            there = (path / "states.npy").exists()
            states = load(path / "states.npy") if there else np.zeros((len(frames), 0))
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
            good = array.ndim == 2 and len(array) == rows and array.dtype.kind in "fiu"
            found = f"{array.dtype} {array.shape}"
            expect(good, f"{where} numbers ({rows}, n), a row a frame, got {found}")
            bad = np.append(np.flatnonzero(~np.isfinite(array).all(1)), rows)[0]
            expect(bad == rows, f"{where} finite numbers, row {bad} is {array[bad % rows]}")
        expect(actions.shape[1], f"{path}/actions.npy: expected an entry or more a row, got none")
        good = ends.ndim == 1 and len(ends) and ends.dtype.kind in "iu"
        good = good and ends[-1] == rows and np.diff(ends, prepend=0).min() > 0
        expect(good, f"{path}/episode_ends.npy: expected increasing ends up to {rows}, got {ends}")
        expect(len(ends) > 1, f"{path}: expected two episodes or more, one to hold out, got one")
        actions, states = actions.astype(np.float32, copy=False), states.astype(float, copy=False)
        with warnings.catch_warnings():  # torch would rather write to them; nothing here does
            warnings.filterwarnings("ignore", ".*not writable.*")
            arrays = map(torch.from_numpy, (frames, actions, states))
            self.frames, self.actions, self.states = arrays
        self.size, self.ends = frames.shape[1], ends
        held_out = np.random.default_rng(0).permutation(len(ends)) < max(1, len(ends) // 10)
        self.episodes = {"train": np.flatnonzero(~held_out), "test": np.flatnonzero(held_out)}

    def world(self, s: "Settings") -> envs.PixelEnv | None:
        """The environment whose states and actions these are, if it is one of the five."""
        world = make_env(s.env, s.variant, s.size) if s.env in envs.ENVS else None
        sizes = self.states.shape[1], self.actions.shape[1]
        return world if world and sizes == (len(world.state()), *world.action_space.shape) else None

    def targets(self, s: "Settings") -> dict[str, np.ndarray]:
        """What the latent is probed for, name -> (F, j): the environment's quantities, or what the
        columns of the states are."""
        states, world = self.states.numpy(), self.world(s)
        columns = self.meta.get("columns", {"states": states.shape[1]} if states.shape[1] else {})
        return world.probe_targets(states) if world else envs.split_columns(states, columns)

    def hold_on(self, device: torch.device) -> None:
        """Move the frames to a GPU if they take at most half of its free memory."""
        if device.type == "cuda":
            if self.frames.numel() < torch.cuda.mem_get_info(device)[0] / 2:
                self.frames = self.frames.to(device)

    def windows(self, split: str, span: int) -> Tensor:
        """First rows of all windows that stay within one episode for `span` further rows."""
        starts = np.append(0, self.ends[:-1])
        rows = [np.arange(starts[i], self.ends[i] - span) for i in self.episodes[split]]
        rows = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        longest = np.diff(self.ends, prepend=0).max()
        expect(
            len(rows),
            f"{self.path}: expected {split} episodes of more than {span} frames, the longest of "
            f"{len(self.ends)} has {longest}; use longer ones, or a smaller --block, --sequence, "
            "--history or --goal-offset",
        )
        return torch.from_numpy(rows)

    def blocks(self, rows: Tensor, count: int, block: int) -> Tensor:
        """The `count` action blocks from rows (B,) on, (B, count, A)."""
        at = rows[:, None] + torch.arange(block * count)
        return self.actions[at].reshape(len(rows), count, -1)

    def batch(self, rows: Tensor, time: int, block: int) -> tuple[Tensor, Tensor]:
        """Windows from rows (B,) on: obs (B, T, S, S, 3), `block` rows apart, act (B, T-1, A)."""
        at = (rows[:, None] + block * torch.arange(time)).to(self.frames.device)
        obs = self.frames.index_select(0, at.flatten()).unflatten(0, at.shape)  # 9x frames[at]
        act = self.blocks(rows, time - 1, block)
        pin = torch.cuda.is_available()  # pinned memory is copied to a GPU while it computes
        return (x.pin_memory() if pin and x.device.type == "cpu" else x for x in (obs, act))


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """The loss of a batch as a module, which is what DistributedDataParallel wraps."""

    def __init__(self, model: WorldModel, s: "Settings", generator: torch.Generator):
        super().__init__()
        self.model = model
        self.loss = partial(METHODS[s.method], lam=s.lam, generator=generator)

    def forward(self, obs: Tensor, act: Tensor) -> tuple[Tensor, dict]:
        """obs (B, T, S, S, 3) uint8, act (B, T-1, A) in env units -> loss, detached parts."""
        act = (act - self.model.act_mean) / self.model.act_std
        loss, parts = self.loss(self.model, obs, act)
        return loss, {name: part.detach() for name, part in parts.items()}


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), for matrices.

    Makes the singular values of the mean gradient equal: what has a weak gradient, such as an angle
    in a few pixels, is learned with what has a strong one. The size of an update is AdamW's (Liu et
    al. 2025, arXiv 2502.16982). In bfloat16 it equals torch.optim.Muon, which knows only that: on a
    CPU without it (AVX2) a 512 x 2048 matrix takes 5.8 s a step there, 0.12 s here in float32.
    """

    def __init__(self, weights: list[Tensor], *, lr: float, weight_decay: float, dtype=torch.float):
        super().__init__(weights, dict(lr=lr, weight_decay=weight_decay, momentum=0.95))
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, decay, momentum = (group[name] for name in ("lr", "weight_decay", "momentum"))
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - momentum)
                update = orthogonal(weight.grad.lerp(mean, momentum).to(self.dtype))
                rate = 0.2 * lr * max(weight.shape) ** 0.5
                weight.mul_(1 - lr * decay).add_(update, alpha=-rate)


def orthogonal(x: Tensor) -> Tensor:
    """A matrix with its singular values brought to 0.7 to 1.2, by five Newton-Schulz iterations."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        polynomial = torch.addmm(square, square, square, beta=-4.775, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x


def make_optimizers(model: nn.Module, s: "Settings") -> list[torch.optim.Optimizer]:
    """AdamW for all weights; with `--optimizer muon`, Muon for those of linear layers."""
    weights = [*model.parameters()]
    matrices = [w for w in weights if w.ndim == 2 and s.optimizer == "muon"]
    rest = [w for w in weights if w.ndim != 2 or s.optimizer != "muon"]
    rates = dict(lr=s.lr, weight_decay=s.weight_decay)
    optimizers = [torch.optim.AdamW(rest, fused=True, **rates)]
    if matrices:
        dtype = torch.bfloat16 if use_bf16(weights[0].device, s.precision) else torch.float32
        optimizers.append(Muon(matrices, dtype=dtype, **rates))
    return optimizers


def train(model: WorldModel, data: Dataset, s: "Settings", log=None, save=None, resume=None):
    """Train `model` in place, on the device it is on; returns the metrics of the last steps.

    `log(row)`, if given, is called with a dict a logged step; `save(state)` every minute with all
    that continuing needs besides the model's weights: given back as `resume`, training goes on as
    if it had not stopped, bit for bit on a CPU. Under torchrun each process takes its part of
    every batch and the gradients are averaged. Raises InputError if the loss is not finite.
    """
    device = model.act_mean.device
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    message = f"--batch: expected a multiple of the {world} processes, got {s.batch}"
    expect(s.batch % world == 0, message)
    data.hold_on(device)
    rows = data.windows("train", s.block * (s.sequence - 1))
    acts = data.blocks(data.windows("train", s.block), 1, s.block)[:, 0]
    model.act_mean.copy_(acts.mean(0))
    model.act_std.copy_(acts.std(0).clamp_min(1e-6))
    model.bf16 = use_bf16(device, s.precision)
    optimizers = make_optimizers(model, s)
    cycle = dict(total_steps=max(11, s.steps), pct_start=0.1)  # of 10 steps torch makes 0 / 0
    one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, **cycle)
    schedules = [one_cycle(optimizer, s.lr) for optimizer in optimizers]
    sampler = torch.Generator().manual_seed(s.seed)
    generator = torch.Generator(device).manual_seed(s.seed)
    objective = Objective(model, s, generator)
    if world > 1:
        if device.type == "cuda":  # on CPUs each process normalises by its own part of the batch
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        unused = s.method != "smwm"  # their inverse model is only watched
        objective = nn.parallel.DistributedDataParallel(objective, find_unused_parameters=unused)
    keep = {f"optimizer {i}": optimizer for i, optimizer in enumerate(optimizers)}
    keep |= {f"schedule {i}": schedule for i, schedule in enumerate(schedules)}
    random = {"sampler": sampler, "generator": generator}
    first, recent, before = 0, [], 0.0
    if resume:
        first, recent, before = _restore(resume, keep, random)
        recent = [*recent.to(device)]
    model.train()
    start = saved = time.perf_counter()
    for step in progress(range(first + 1, s.steps + 1), f"train {s.method}"):
        at = rows[torch.randint(len(rows), (s.batch,), generator=sampler)][rank::world]
        batch = data.batch(at, s.sequence, s.block)
        obs, act = (x.to(device, non_blocking=True) for x in batch)
        with autocast(device, s.precision):
            loss, parts = objective(obs, act)
        model.zero_grad()
        loss.backward()
        for part in (*optimizers, *schedules):
            part.step()
        recent.append(torch.stack([loss.detach(), *parts.values()]))
        if step % s.log_every == 0 or step == s.steps:
            means = torch.stack(recent).mean(0)
            if world > 1:
                dist.all_reduce(means.div_(world))
            means, recent, seconds = means.tolist(), [], before + time.perf_counter() - start
            row = {"step": step, "seconds": seconds, "lr": schedules[0].get_last_lr()[0]}
            row |= dict(zip(("loss", *parts), means, strict=True))
            message = f"training: the loss became {means[0]} by step {step}; try a smaller --lr"
            expect(math.isfinite(means[0]), message)
            if log:
                log(row)
        if save and time.perf_counter() - saved > SAVE_EVERY and step < s.steps:
            saved = time.perf_counter()
            state = {"step": step, "seconds": before + saved - start}
            state["recent"] = torch.stack(recent) if recent else torch.zeros(0)
            state |= {name: part.state_dict() for name, part in keep.items()}
            save(state | {name: part.get_state() for name, part in random.items()})
    model.eval()
    rate = s.steps * s.batch * s.sequence / seconds
    metrics = {"steps": s.steps, "seconds": seconds, "frames_per_second": rate}
    return metrics | {name: row[name] for name in parts}


SAVE_EVERY = 60.0  # seconds between checkpoints


def _restore(resume: dict, keep: dict, random: dict) -> tuple[int, Tensor, float]:
    """Put back a state that `train` saved; returns its step, recent losses and seconds."""
    try:
        for name, part in keep.items():
            part.load_state_dict(resume[name])
        for name, part in random.items():
            part.set_state(resume[name].cpu())
        return resume["step"], resume["recent"], resume["seconds"]
    except (LookupError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        message = f"expected the state of this training, got: {error}; train anew"
        raise InputError(f"--resume: {message}") from error


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


@torch.no_grad()  # inference_mode would cast the weights to bf16 anew at every product
def plan(
    model: WorldModel,
    obs: Tensor,
    goal_obs: Tensor,
    *,
    past: Tensor | None = None,
    metric: Tensor | None = None,
    axes: Tensor | None = None,
    horizon: int = 5,
    samples: int = 300,
    elites: int = 30,
    iterations: int = 30,
    low: float = -1.0,
    high: float = 1.0,
    seed: int = 0,
    rows: int = 3000,
    precision: str = "auto",
) -> Tensor:
    """Action blocks (B, H, A), in env units within [low, high], towards goal images.

    obs, goal_obs: (B, S, S, 3) uint8. The cost of a sequence is the squared distance of the last
    imagined latent to the goal's, after the linear map `metric` (D, D) if there is one (`whiten`
    makes one). What is searched are standardised blocks, or, with `axes` (A, A), their coordinates:
    x stands for the block x @ axes (`action_axes` makes them). Both images are encoded once; `past`
    as in `observe`. On a CPU the tasks are planned in groups of `rows` samples, which fit its
    cache; the result does not depend on it.
    """
    device, dim = model.act_mean.device, len(model.act_mean)
    lower, upper = ((bound - model.act_mean) / model.act_std for bound in (low, high))
    now = model.observe(obs.to(device), past if past is None else past.to(device))  # (B, C)
    z_goal = model.encode(goal_obs.to(device))  # (B, D)

    def blocks(x):  # what is searched -> standardised blocks within the bounds
        return (x if axes is None else x @ axes).clamp(lower, upper)

    def cost(context, z_goal, x):  # (B, C), (B, D), (B, N, H, A) -> (B, N)
        context = context[:, None]  # one for all samples, until they differ
        for act in blocks(x).unbind(2):
            z = model.predict(context, act)
            context = model.advance(context.expand(-1, act.shape[1], -1), act, z)
        error = z.float() - z_goal[:, None]
        return (error if metric is None else error @ metric).square().sum(-1)

    group = max(1, rows // samples) if device.type == "cpu" else len(now)
    sizes, plans = dict(samples=samples, elites=elites, iterations=iterations), []
    for now_part, goal_part in zip(now.split(group), z_goal.split(group), strict=True):
        mean = torch.zeros(len(now_part), horizon, dim, device=device)
        generator = torch.Generator(device).manual_seed(seed)
        cost_fn = partial(cost, now_part, goal_part)
        with autocast(device, precision):
            plans.append(cem(cost_fn, mean, torch.ones_like(mean), generator=generator, **sizes))
    return blocks(torch.cat(plans)) * model.act_std + model.act_mean


def action_axes(acts: Tensor) -> Tensor:
    """The principal components of standardised action blocks (n, A), each as long as its standard
    deviation, as rows (A, A). Along them N(0, I), the first search distribution, has the covariance
    of the blocks in the data: smooth motions, where entry by entry nearly all samples jitter."""
    acts = acts.double()
    variance, components = torch.linalg.eigh(acts.T @ acts / len(acts))
    return (components * variance.clamp_min(0).sqrt()).T.float()


def whiten(z: Tensor, power: float) -> Tensor:
    """The map (D, D) after which a squared distance counts each principal component of the latents
    z (n, D) divided by its variance to the `power`: 0 leaves the distance as it is, 1 makes it
    Mahalanobis'. Small variances are raised to a hundredth of the largest."""
    z = (z - z.mean(0)).double()  # the decomposition of a collapsed latent may fail in float32
    variance, components = torch.linalg.eigh(z.T @ z / len(z))
    relative = variance / variance[-1].clamp_min(1e-12)
    return (components * (relative.clamp_min(0) + 0.01) ** (-power / 2)).float()


def evaluate_planning(model: WorldModel, data: Dataset, s: "Settings") -> tuple[dict, dict]:
    """Plan in the real environment: from frames of held-out episodes to later frames of the same.

    A task is solved when the environment's criterion holds at any step within the budget. Every
    method and seed meets the same tasks. Returns the metrics and the trajectories: states
    (tasks, budget+1, d), goals (tasks, d), first solved step or -1, and `imagined` (tasks,
    budget/k + 1, d): for what was imagined after each block, the state of the training frame with
    the nearest latent (there is no decoder).
    """
    rows, device = planning_tasks(data, s), model.act_mean.device
    goal_obs = data.frames[rows + s.goal_offset]
    shown = training_rows(data)
    z_shown, blocks = encode_all(model, data.frames, shown), math.ceil(s.budget / s.block)
    search = planner(model, data, s, z_shown)
    imagined = data.states[rows][:, None].repeat(1, blocks + s.horizon, 1).numpy()
    spent = []

    def policy(obs: Tensor, past: Tensor, active: np.ndarray, step: int) -> Tensor:
        began = time.perf_counter()
        acts = search(obs, goal_obs[active], past=past, seed=step)
        spent.append((time.perf_counter() - began) / len(active))
        with torch.inference_mode():
            now = model.observe(obs.to(device), past.to(device))
            z = model.rollout(now, (acts - model.act_mean) / model.act_std)[:, 1:].float().cpu()
        nearest = torch.cdist(z.flatten(0, 1), z_shown).argmin(1).reshape(z.shape[:2])
        later = step // s.block + np.arange(1, s.horizon + 1)
        imagined[active[:, None], later] = data.states[shown[nearest]]
        return acts.cpu().reshape(len(active), s.horizon * s.block, -1)

    states, goals, solved = run_tasks(policy, data, s, "plan")
    solved_random = run_random_policy(data, s)
    metrics = {"tasks": len(solved), "unsolved_tasks": int((solved != 0).sum())}
    for suffix, among in (("", solved >= -1), ("_unsolved", solved != 0)):
        metrics[f"success{suffix}"] = percent(solved[among] >= 0)
        metrics[f"interval95{suffix}"] = interval95(solved[among] >= 0)
        metrics[f"random{suffix}"] = percent(solved_random[among] >= 0)
    metrics["seconds_per_plan"] = float(np.mean(spent)) if spent else None
    imagined = imagined[:, : blocks + 1]
    return metrics, {"states": states, "goals": goals, "solved": solved, "imagined": imagined}


def training_rows(data: Dataset) -> np.ndarray:
    """Up to 10,000 frames of the training episodes."""
    return np.sort(np.random.default_rng(0).permutation(data.windows("train", 0))[:10_000])


def planner(model: WorldModel, data: Dataset, s: "Settings", z: Tensor):
    """`plan` as the settings have it; z (n, D): latents of training frames."""
    how = {name: getattr(s, name) for name in ("horizon", "samples", "elites", "iterations")}
    if s.whiten:
        how["metric"] = whiten(z, s.whiten).to(model.act_mean.device)
    if s.search == "components":
        acts = data.blocks(data.windows("train", s.block), 1, s.block)[:, 0].to(model.act_mean)
        how["axes"] = action_axes((acts - model.act_mean) / model.act_std)
    return partial(plan, model, precision=s.precision, **how)


def planning_tasks(data: Dataset, s: "Settings") -> np.ndarray:
    """The rows where tasks start: two blocks or more into an episode, past enough for a history."""
    lead = max(2, s.history - 1) * s.block
    rows = lead + data.windows("test", lead + s.goal_offset).numpy()
    return np.random.default_rng(0).permutation(rows)[: s.tasks]


def run_random_policy(data: Dataset, s: "Settings") -> np.ndarray:
    """First solved step of each task, or -1, under uniform random actions."""
    rng, steps = np.random.default_rng(1), s.horizon * s.block

    def policy(obs: Tensor, past: Tensor, active: np.ndarray, step: int) -> np.ndarray:
        return rng.uniform(-1, 1, (len(active), steps, data.actions.shape[1]))

    return run_tasks(policy, data, s, "random policy")[2]


def run_tasks(policy, data: Dataset, s: "Settings", label: str):
    """Run policy(obs, past, active, step) -> (n, steps, m) on the tasks not solved yet.

    obs (n, h, S, S, 3) and past (n, h-1, A) are the last h frames, a block apart, and the blocks
    between them; `active` (n,) numbers the tasks. Returns states (tasks, budget+1, d), goals
    (tasks, d) and the first solved step of each, or -1.
    """
    rows, lead = planning_tasks(data, s), (s.history - 1) * s.block
    at = torch.from_numpy(rows)[:, None] + torch.arange(-lead, 1)
    states, actions = data.states[at].numpy(), data.actions[at].numpy()
    states, actions = (
        np.pad(x, ((0, 0), (0, s.budget), (0, 0)), "edge") for x in (states, actions)
    )
    goals, solved = data.states[rows + s.goal_offset].numpy(), np.full(len(rows), -1)
    worlds = [make_env(s.env, s.variant, s.size) for _ in rows]
    for task, world in enumerate(worlds):
        _, info = world.reset(options={"state": states[task, lead], "goal": goals[task]})
        solved[task] = 0 if info["success"] else -1
    for step in progress(range(0, s.budget, s.horizon * s.block), label):
        active = np.flatnonzero(solved < 0)
        if not len(active):
            break
        recent = states[active, step : step + lead + 1 : s.block]
        frames = [[worlds[0].render_state(state) for state in task] for task in recent]
        past = torch.from_numpy(actions[active, step : step + lead]).reshape(
            len(active), s.history - 1, s.block * actions.shape[2]
        )
        plans = policy(torch.from_numpy(np.array(frames)), past, active, step)
        for task, blocks in zip(active, plans, strict=True):
            for t, action in enumerate(np.asarray(blocks[: s.budget - step]), lead + step):
                info = worlds[task].advance(action)
                actions[task, t], states[task, t + 1 :] = action, info["state"]
                if info["success"]:
                    solved[task] = t + 1 - lead
                    break
    return states[:, lead:], goals, solved


def evaluate_reaching(model: WorldModel, data: Dataset, s: "Settings") -> dict:
    """Planning where no state can be restored, in an environment `gymnasium:<id>`.

    Start and goal: a seeded reset, and what random actions lead to from it. Judged by the squared
    latent distance to the goal at the closest step, relative to the start's.
    """
    world, steps = make_env(s.env, s.variant, s.size), s.horizon * s.block
    search = planner(model, data, s, encode_all(model, data.frames, training_rows(data)))

    def play(task: int, budget: int, choose) -> list[np.ndarray]:
        frames, acts, queue = [world.reset(seed=task)[0]], [], []
        while len(acts) < budget:
            queue = queue or [*choose(frames, acts)]
            acts.append(np.asarray(queue.pop(0), np.float32))
            frame, _, terminated, truncated, _ = world.step(acts[-1])
            frames.append(frame)
            if terminated or truncated:
                break
        return frames

    def reach(task: int) -> list[float]:
        """How near the planner comes to the goal of a task, and how near random actions do."""
        rng = np.random.default_rng([2, task])
        policy = world.behavior(rng)
        goal = torch.from_numpy(play(task, s.goal_offset, lambda *_: [policy(world)])[-1])[None]

        def planned(frames, acts):
            past = min(s.history - 1, len(acts) // s.block)
            obs = torch.from_numpy(np.stack(frames[len(frames) - 1 - past * s.block :: s.block]))
            blocks = np.array(acts[len(acts) - past * s.block :], np.float32)
            blocks = torch.from_numpy(blocks.reshape(1, past, len(model.act_mean)))
            return search(obs[None], goal, past=blocks).cpu().numpy().reshape(steps, -1)

        def random(frames, acts):
            return rng.uniform(-1, 1, (steps, *world.action_space.shape))

        distances, z_goal = [], encode_all(model, goal)
        for choose in (planned, random):
            frames = torch.from_numpy(np.stack(play(task, s.budget, choose)))
            far = (encode_all(model, frames) - z_goal).square().sum(1)
            distances.append(float(far.min() / far[0].clamp_min(1e-12)))
        return distances

    ours, theirs = np.array([reach(task) for task in progress(range(s.tasks), "plan")]).T
    means = {"distance": float(ours.mean()), "random_distance": float(theirs.mean())}
    return {"tasks": s.tasks, **means, "nearer_than_random": percent(ours < theirs)}


def percent(hits: np.ndarray) -> float | None:
    return 100 * float(np.mean(hits)) if len(hits) else None


def interval95(hits: np.ndarray) -> list[float] | None:
    """Wilson's 95% interval of a success rate, in percent."""
    n = len(hits)
    if n == 0:
        return None
    z, p = 1.96, float(np.mean(hits))
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return [100 * max(low, 0.0), 100 * min(high, 1.0)]  # rounding may step over


# ------------------------------------------------------------------------------------------------
# Probes
# ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def encode_all(model: WorldModel, frames: Tensor, rows=None, batch: int = 500) -> Tensor:
    """Frames (F, S, S, 3) uint8, or some rows of them, to latents (n, D) on the CPU."""
    rows = torch.arange(len(frames)) if rows is None else torch.as_tensor(rows)
    device = model.act_mean.device
    parts = [model.encode(frames[part].to(device)).float().cpu() for part in rows.split(batch)]
    return torch.cat(parts)


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """By the mean and deviation of `train`; an entry constant but for rounding is only centred."""
    std, mean = torch.std_mean(train, 0)
    std = torch.where(std > 1e-6 * mean.abs(), std, 1.0)
    return (train - mean) / std, (test - mean) / std


def r2(prediction: Tensor, target: Tensor) -> float:
    """Coefficient of determination, averaged over what varies of (n, j), (n, j) -> scalar."""
    residual = (prediction - target).square().sum(0)
    total = (target - target.mean(0)).square().sum(0)
    return float((1 - residual / total)[total > 1e-12].mean())


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
    count = max(1, len(x) // 10)
    held, rest = order[:count], order[min(count, len(x) - 1) :]
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
    values, vectors = torch.linalg.eigh(torch.cov(z.double().T).reshape(2 * z.shape[1:]))
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
    z, z_test = (encode_all(model, data.frames, rows) for rows in picks)
    x, x_test = standardise(z.double(), z_test.double())
    truth = {k: v for k, v in data.targets(s).items() if np.ptp(v[picks[1]], axis=0).any()}
    probe = {"linear": {}, "mlp": {}}
    for name, values in progress(truth.items(), "probe"):
        y, y_test = standardise(*(torch.from_numpy(values[rows]) for rows in picks))
        probe["linear"][name] = r2(linear_probe(x, y, x_test), y_test)
        probe["mlp"][name] = r2(mlp_probe(x, y, x_test, epochs=s.probe_epochs), y_test)
    spectrum, directions = principal_components(z_test)
    rows = data.windows("test", s.block * (s.sequence - 1))
    obs, act = data.batch(rows[:: 1 + len(rows) // 200], s.sequence, s.block)
    act = (act.to(device) - model.act_mean) / model.act_std
    with torch.inference_mode():
        _, losses = prediction_losses(model, obs.to(device), act)
    # Rollouts: imagined against encoded latents, squared error relative to the latent's variance.
    longest = np.diff(data.ends, prepend=0)[data.episodes["test"]].max()
    steps = min(10, int(longest - 1) // s.block)
    rows = data.windows("test", s.block * steps)
    rows = rows[np.sort(rng.permutation(len(rows))[:500])]
    at, act = rows[:, None] + s.block * torch.arange(steps + 1), data.blocks(rows, steps, s.block)
    encoded = encode_all(model, data.frames, at.flatten()).unflatten(0, at.shape)
    with torch.inference_mode():
        act = (act.to(device) - model.act_mean) / model.act_std
        start = F.pad(encoded[:, 0], (model.context_dim - model.dim, 0)).to(device)
        imagined = model.rollout(start, act).cpu()
    error = (imagined - encoded).square().mean((0, 2)) / z_test.var(0).mean().clamp_min(1e-30)
    latent = {
        "effective_dim": effective_dim(spectrum),
        "components_95": int((spectrum.cumsum(0) < 0.95 * spectrum.sum()).sum()) + 1,
        "spectrum": spectrum.tolist(),
        "rollout_error": error[1:].tolist(),
        **{name: value.item() for name, value in losses.items()},  # on held-out windows
    }
    mean, directions = z_test.double().mean(0), F.pad(directions, (0, 3))  # four, were D one
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


def figure_latent(run: Path):
    """The spectrum; then, a row a quantity, the world and the latent's leading components, in the
    same colours: a map of the plane, a wheel for the (first) angle, a scale for one number.
    Where no quantity is known, it is the place in the data."""
    from matplotlib import colormaps

    saved, latent = load_arrays(run / "latents.npz"), load_metrics(run)["latent"]
    names = [name for name in saved if name.startswith("target ")]
    values = {name.removeprefix("target "): saved[name] for name in names}
    values = values or {"place in the data": np.arange(len(saved["components"]))[:, None]}
    share = 100 * np.array(latent["spectrum"][:16]) / max(sum(latent["spectrum"]), 1e-300)
    fig, axes = new_figure(len(values), 4, 9, 2.4 * len(values))
    axes[0, 0].bar(np.arange(1, len(share) + 1), share)
    title = f"effective dimension {latent['effective_dim']:.2f}"
    axes[0, 0].set(xlabel="principal component", ylabel="% of variance", title=title)
    for ax in axes[1:, 0]:
        ax.axis("off")
    pcs = saved["components"][:3000].T
    for row, (name, value) in zip(axes, values.items(), strict=True):
        value = value[:3000].T
        half, span = len(value) // 2, np.ptp(value, axis=1, keepdims=True)
        unit = (value - value.min(1, keepdims=True)) / np.maximum(span, 1e-12)
        circle = np.square(value[:half]) + np.square(value[half : 2 * half])
        pairs = len(value) == 2 * half
        if pairs and np.abs(circle - 1).max() < 1e-3:  # sines, then cosines, of one or more angles
            angles = np.arctan2(value[:half], value[half:])
            colour = colormaps["twilight"](angles[0] / (2 * np.pi) + 0.5)
            world = angles[:2] if half > 1 else value
        elif len(value) > 1:
            colour = np.stack([unit[0], 0.75 - 0.5 * unit[:2].mean(0), unit[1]], 1)
            world = value[:2]
        else:
            colour = colormaps["viridis"](unit[0])
            world = value[0], np.linspace(0, 1, value.shape[1])
        panels = ((world, name), (pcs[:2], "latent, PC 1 and 2"), (pcs[2:], "latent, PC 3 and 4"))
        for ax, (points, title) in zip(row[1:], panels, strict=True):
            ax.scatter(*points, 3, colour)
            ax.set(xticks=[], yticks=[])
            ax.set_title(title, fontsize=9)
    return fig


def figure_rollout(run: Path):
    """Encoded against imagined trajectories, and the imagination's error by step."""
    saved, metrics = load_arrays(run / "latents.npz"), load_metrics(run)
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


def chosen_tasks(saved) -> list[int]:
    """Two solved and two unsolved tasks, or what there is; one if all are solved at the start."""
    solved, unsolved = np.flatnonzero(saved["solved"] > 0), np.flatnonzero(saved["solved"] < 0)
    return [*solved[: 4 - min(2, len(unsolved))], *unsolved[: 4 - min(2, len(solved))]] or [0]


def figure_plan(run: Path):
    """Tasks in two filmstrips each: what was executed, and what the planner had imagined (the
    training frame nearest to each imagined latent). Unsolved tasks, if any, last."""
    s, saved = load_settings(run), load_arrays(run / "plans.npz")
    world, tasks = make_env(s.env, s.variant, 128), chosen_tasks(saved)
    fig, axes = new_figure(2 * len(tasks), 8, 9, 2.5 * len(tasks))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for task, rows in zip(tasks, axes.reshape(-1, 2, 8), strict=True):
        end = saved["solved"][task] if saved["solved"][task] >= 0 else s.budget
        blocks = np.unique(np.linspace(0, math.ceil(end / s.block), 7).round().astype(int))
        label = "solved" if saved["solved"][task] >= 0 else "not solved"
        rows[0, 0].set_ylabel(f"{label}\nexecuted", fontsize=8)
        rows[1, 0].set_ylabel("imagined", fontsize=8)
        for column, block in enumerate(blocks):
            step = min(block * s.block, end)
            rows[0, column].imshow(world.render_state(saved["states"][task, step]))
            rows[1, column].imshow(world.render_state(saved["imagined"][task, block]))
            rows[0, column].set_title("start" if step == 0 else f"step {step}", fontsize=8)
        rows[0, 7].imshow(world.render_state(saved["goals"][task]))
        rows[0, 7].set_title("goal", fontsize=8)
        for ax in [*rows[:, len(blocks) : 7].flat, rows[1, 7]]:
            ax.axis("off")
    return fig


def animate_plan(run: Path, path: Path) -> None:
    """An animated GIF of the same tasks: start, goal, executed and imagined, side by side."""
    from PIL import Image, ImageDraw  # installed with matplotlib

    s, saved = load_settings(run), load_arrays(run / "plans.npz")
    side, world, frames = 112, make_env(s.env, s.variant, 112), []
    tasks = chosen_tasks(saved)
    for step in range(s.budget + 1):
        rows = []
        for task in tasks:
            end = saved["solved"][task] if saved["solved"][task] >= 0 else s.budget
            now, block = min(step, end), math.ceil(min(step, end) / s.block)
            trajectory = saved["states"][task]
            four = (trajectory[0], saved["goals"][task], trajectory[now])
            four = [*four, saved["imagined"][task, block]]
            rows.append(np.concatenate([world.render_state(state) for state in four], 1))
        picture = Image.fromarray(np.pad(np.concatenate(rows), ((14, 0), (0, 0), (0, 0))))
        draw = ImageDraw.Draw(picture)
        for column, title in enumerate(("start", "goal", f"executed {step}", "imagined")):
            draw.text((column * side + 4, 1), title, fill="white")
        frames.append(picture.quantize(64))
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)


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
    "latent": (figure_latent, "latents.npz"),
    "rollout": (figure_rollout, "latents.npz"),
    "plan": (figure_plan, "plans.npz"),
}


# ------------------------------------------------------------------------------------------------
# Report: tables of finished runs, the published values beside them
# ------------------------------------------------------------------------------------------------

# The authors' released results, 5 seeds, 100 tasks: planning success in % over all tasks, and probe
# R2 as (linear, MLP).
PUBLISHED_PLANNING = {
    "tworoom": dict(smwm=100, sigreg=92.6, forward=34.6, random=30.0),
    "reacher": dict(smwm=71.4, sigreg=67.8, forward=9.8, random=13.6),
    "reacher history 3": dict(smwm=95.2, sigreg=94.6),
    "pusht": dict(smwm=84.4, sigreg=88.8, forward=2.6, random=2.8),
    "cube": dict(smwm=83.0, sigreg=60.0, forward=46.8, random=43.0),
}
PUBLISHED_PROBES = {  # (environment, quantity): method -> (linear, MLP)
    ("tworoom", "agent position"):
        dict(smwm=(1.000, 1.000), sigreg=(0.996, 1.000), forward=(0.832, 0.991)),
    ("reacher", "joint angles"):
        dict(smwm=(0.946, 0.995), sigreg=(0.999, 1.000), forward=(0.647, 0.962)),
    ("pusht", "agent position"):
        dict(smwm=(0.993, 0.988), sigreg=(0.954, 0.986), forward=(0.293, 0.433)),
    ("pusht", "block position"):
        dict(smwm=(0.946, 0.981), sigreg=(0.973, 0.996), forward=(0.352, 0.623)),
    ("pusht", "block orientation"):
        dict(smwm=(0.664, 0.882), sigreg=(0.931, 0.987), forward=(0.202, 0.491)),
    ("cube", "cube position"):
        dict(smwm=(0.998, 0.998), sigreg=(0.975, 0.993), forward=(0.706, 0.854)),
    ("cube", "gripper position"):
        dict(smwm=(0.999, 0.999), sigreg=(0.986, 0.995), forward=(0.902, 0.979)),
    ("cube", "gripper opening"):
        dict(smwm=(0.989, 0.992), sigreg=(0.961, 0.983), forward=(0.269, 0.427)),
}  # fmt: skip


def markdown(header: str, rows: list[list]) -> str:
    lines = [header.split("|"), ["---"] * len(header.split("|")), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def mean_error(values: list[float], digits: int) -> str:
    """Mean ± standard error over seeds, "-" for none."""
    if not values or None in values:
        return "-"
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    text = f"{np.mean(values):.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def group_runs(runs: list[Path]) -> list[tuple["Settings", str, list[dict]]]:
    """Settings, label and the metrics of each seed, for runs that differ by their seed alone."""
    groups = {}
    for run in runs:
        if run.is_file():  # `runs/*` may have a picture
            continue
        s, metrics = load_settings(run), load_metrics(run)
        if not {"train", "probe"} <= {*metrics}:
            print(f"{run}: left out, it is not finished", file=sys.stderr)
            continue
        key = dataclasses.replace(s, seed=0, out="", data="", device="auto", threads=0)
        groups.setdefault(key, []).append(metrics)
    expect(groups, f"report: expected a finished run, got {', '.join(map(str, runs))}")
    rows = []
    for s, seeds in groups.items():
        options = [f"history {s.history}"] * (s.history > 1)
        options += [f"λ {s.lam:g}"] * (s.method != "forward")
        options += ["Muon"] * (s.optimizer == "muon") + [s.search] * (s.search == "components")
        options += [f"whiten {s.whiten:g}"] * (s.whiten > 0)
        rows.append((s, f"{s.method} ({', '.join(options)})" if options else s.method, seeds))

    def order(row):
        s, names = row[0], [*envs.ENVS]
        place = names.index(s.env) if s.env in names else len(names)
        return place, s.variant, [*METHODS].index(s.method), s.history, s.steps

    return sorted(rows, key=order)


def planning_row(s: "Settings", label: str, seeds: list[dict]) -> list:
    published = PUBLISHED_PLANNING.get(s.env, {})
    ours = PUBLISHED_PLANNING.get(f"{s.env} history {s.history}", published).get(s.method, "-")
    plans = [m["planning"] for m in seeds if "success" in m.get("planning", {})]
    minutes = mean_error([m["train"]["seconds"] / 60 for m in seeds], 1)
    if not plans:
        return [s.env, label, len(seeds), *"-" * 7, s.steps, minutes]
    tasks, hits = sum(p["tasks"] for p in plans), sum(p["tasks"] * p["success"] for p in plans)
    low, high = interval95(np.arange(tasks) < round(hits / 100))
    return [
        s.env,
        label,
        len(seeds),
        mean_error([p["success"] for p in plans], 1),
        f"{low:.0f} to {high:.0f}",
        ours,
        mean_error([p["success_unsolved"] for p in plans], 1),
        f"{plans[0]['unsolved_tasks']} of {plans[0]['tasks']}",
        f"{plans[0]['random']:.0f}",
        published.get("random", "-"),
        s.steps,
        minutes,
    ]


def probe_rows(s: "Settings", label: str, seeds: list[dict]) -> list[list]:
    rows = []
    for name in seeds[0]["probe"]["linear"]:
        pair = PUBLISHED_PROBES.get((s.env, name), {}).get(s.method, ("-", "-"))
        rows.append([s.env, name, label, s.steps])
        for kind, value in zip(("linear", "mlp"), pair, strict=True):
            rows[-1] += [mean_error([m["probe"][kind][name] for m in seeds], 3), value]
    return rows


def dot_row(s: "Settings", label: str, seeds: list[dict]) -> list:
    held = make_env(s.env, s.variant, s.size).controlled
    plans = [m["planning"] for m in seeds if "planning" in m]
    linear = [m["probe"]["linear"] for m in seeds]
    r2s = {name: mean_error([values[name] for values in linear], 4) for name in linear[0]}
    return [
        s.variant,
        label,
        mean_error([m["latent"]["effective_dim"] for m in seeds], 2),
        ", ".join(f"{name} {value}" for name, value in r2s.items() if name in held) or "-",
        ", ".join(f"{name} {value}" for name, value in r2s.items() if name not in held) or "-",
        f"{np.mean([m['latent']['latent_std'] for m in seeds]):.2g}",
        mean_error([p["success"] for p in plans], 0),
        mean_error([p["random"] for p in plans[:1]], 0),
        mean_error([m["train"]["seconds"] for m in seeds], 0),
    ]


def report(runs: list[Path]) -> str:
    """Markdown: a table of planning, one of probes, and one of what was learned of dot world."""
    groups, tables = group_runs(runs), []
    others = [group for group in groups if group[0].env != "dotworld"]
    dots = [group for group in groups if group[0].env == "dotworld"]
    if others:
        header = "environment|method|seeds|success %|95% interval|published|not solved at start %"
        header += "|n|random %|published|steps|minutes"
        tables.append(markdown(header, [planning_row(*group) for group in others]))
        header = "environment|quantity|method|steps|linear R²|published|MLP R²|published"
        tables.append(markdown(header, [row for group in others for row in probe_rows(*group)]))
    if dots:
        header = "variant|method|effective dimension|linear R², controlled"
        header += "|linear R², not controlled|spread|success %|random %|train s"
        tables.append(markdown(header, [dot_row(*group) for group in dots]))
    return "\n\n".join(tables)


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def setting(default, group: str, text: str):
    return dataclasses.field(default=default, metadata={"group": group, "help": text})


@dataclass(frozen=True)
class Settings:
    """Every setting there is. PRESETS change the defaults by environment, the command line both."""

    env: str = setting("dotworld", "what", f"{', '.join(envs.ENVS)}, or gymnasium:<id>")
    variant: str = setting("", "what", "variant of the environment; empty: its first")
    method: str = setting("smwm", "method", f"training loss: {', '.join(METHODS)}")
    seed: int = setting(0, "method", "seed of the weights and of the batches")
    out: str = setting("", "method", "run folder; empty: runs/<env>[-<variant>]-<method>-s<seed>")
    data: str = setting("", "method", "dataset: a folder, .npz or .h5; empty: collected, in data/")
    frames: int = setting(20_000, "data", "frames to collect")
    episode: int = setting(50, "data", "frames of an episode")
    size: int = setting(64, "data", "side of a frame in pixels, a multiple of 16")
    data_seed: int = setting(0, "data", "seed of the collected data")
    block: int = setting(5, "model", "env actions in a block (k)")
    dim: int = setting(128, "model", "entries of the latent (D)")
    encoder: str = setting("conv", "model", "conv, or vit: the paper's encoder and forward model")
    channels: int = setting(32, "model", "channels of the encoder's first layer; then 2x, 4x")
    refine: int = setting(0, "model", "3 x 3 layers of the encoder after its first")
    hidden: int = setting(512, "model", "width of the encoder's head")
    width: int = setting(256, "model", "width of forward and inverse model")
    depth: int = setting(3, "model", "blocks of the forward model")
    history: int = setting(1, "model", "latents that the forward model sees")
    steps: int = setting(5000, "training", "optimiser steps")
    batch: int = setting(128, "training", "windows in a batch (B)")
    sequence: int = setting(4, "training", "frames in a window (T), one block apart")
    optimizer: str = setting("adamw", "training", "adamw, or muon: that on linear layers")
    lr: float = setting(1e-3, "training", "peak learning rate, one cycle")
    weight_decay: float = setting(1e-4, "training", "decoupled weight decay")
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
    search: str = setting("entries", "planning", "CEM along entries of a block, or its components")
    whiten: float = setting(0.0, "planning", "power of the variances that divide goal distances")
    device: str = setting("auto", "machine", "auto (CUDA if there), cpu, cuda, cuda:1, ...")
    precision: str = setting("auto", "machine", "auto (bf16 where it is fast), fp32, bf16")
    threads: int = setting(0, "machine", "CPU threads; 0: torch's choice")

    def __post_init__(self):
        variants = getattr(envs.ENVS.get(self.env), "VARIANTS", {})
        if not self.variant and variants:
            object.__setattr__(self, "variant", next(iter(variants)))
        known = {"env": envs.ENVS, "variant": variants, "method": METHODS}
        known |= {"encoder": ("conv", "vit"), "precision": ("auto", "fp32", "bf16")}
        known |= {"optimizer": ("adamw", "muon"), "search": ("entries", "components")}
        if self.env == "none" or self.env.startswith("gymnasium:"):
            known.pop("env")
            known["variant"] = ("",)
        for name, names in known.items():
            value = getattr(self, name)
            expect(value in names, f"--{name}: expected one of {', '.join(names)}, got {value!r}")
        lowest = dict.fromkeys(("seed", "data_seed", "threads", "refine", "depth"), 0)
        lowest |= dict.fromkeys(("sequence", "elites", "probe_train", "probe_test"), 2)
        for field in dataclasses.fields(self):
            if field.type is not str:
                value, option = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
                least = 0 if field.type is float else lowest.get(field.name, 1)
                good = least <= value < math.inf
                expect(good, f"{option}: expected a number of at least {least}, got {value}")
        expect(self.size % 16 == 0, f"--size: expected a multiple of 16, got {self.size}")
        good = self.elites <= self.samples
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
        frames=40_000, steps=2000, batch=64, lr=1e-3, lam=100.0,
        samples=300, elites=30, iterations=20,
    ),
    "tworoom": dict(frames=100_000, episode=100, steps=1000),
    "reacher": dict(frames=200_000, episode=100, steps=2000, history=3),
    "pusht": dict(
        frames=600_000, episode=100, steps=5000, lr=2e-3, history=3, optimizer="muon",
        search="components", whiten=0.5,
    ),
    "cube": dict(
        frames=400_000, episode=100, size=96, refine=1, width=240, steps=5000, history=3,
        whiten=0.75,
    ),
}  # fmt: skip


def settings_for(**given) -> Settings:
    """Settings from what the command line gave, over the preset of the environment and variant."""
    if given.get("data") and "env" not in given:  # a dataset says what it is of, or it is foreign
        meta = Path(given["data"]) / "meta.json"
        try:
            meta = json.loads(meta.read_text()) if meta.exists() else {}
        except ValueError as error:
            raise InputError(f"{meta}: expected JSON, got: {error}; mend or remove it") from error
        given |= {name: meta.get(name, none) for name, none in (("env", "none"), ("variant", ""))}
    env = given.get("env", Settings.env)
    preset = PRESETS.get(env, {}) | PRESETS.get(f"{env}-{given.get('variant')}", {})
    if given.get("method") == "sigreg":
        preset = preset | {"lam": 0.1}
    if given.get("encoder") == "vit":
        preset = preset | {"dim": 192}
    return Settings(**preset | given)


def build_model(s: Settings, act_dim: int) -> WorldModel:
    names = "size channels refine hidden dim width depth history encoder".split()
    sizes = {name: getattr(s, name) for name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        return WorldModel(act_dim=act_dim, **sizes)


def pick_device(s: Settings) -> torch.device:
    if s.threads:
        torch.set_num_threads(s.threads)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if s.device == "auto" else s.device
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # set by torchrun
        name = f"cuda:{os.environ['LOCAL_RANK']}"
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


def save_checkpoint(path: Path, model: WorldModel, s: Settings, training=None) -> None:
    """Weights and settings; while training, `training` has all that continuing needs besides."""
    content = {"smwm": 3, "settings": dataclasses.asdict(s), "act_dim": len(model.act_mean)}
    content |= {"model": model.state_dict()} | ({"training": training} if training else {})
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # how torch says that a write failed
            raise OSError(
                errno.ENOSPC, f"{path} not written ({str(error).splitlines()[0]})"
            ) from error


def load_checkpoint(path: str | Path, device="cpu") -> tuple[WorldModel, Settings]:
    """The trained model, in evaluation mode, and its settings; InputError on any other file."""
    return read_checkpoint(path, device)[:2]


def read_checkpoint(path: str | Path, device="cpu") -> tuple[WorldModel, Settings, dict | None]:
    expect(Path(path).exists(), f"{path}: expected a checkpoint, found none; let training finish")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content["smwm"] != 3:
            raise ValueError(f"version {content['smwm']}, this code reads version 3")
        s = Settings(**content["settings"])
        model = build_model(s, content["act_dim"]).to(device)
        model.load_state_dict(content["model"])
        if not all(x.isfinite().all() for x in model.state_dict().values()):
            raise ValueError("weights that are not finite")
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"{path}: expected a whole smwm checkpoint, got: {reason}; train anew"
        raise InputError(message) from error
    return model.eval(), s, content.get("training")


def open_dataset(s: Settings) -> Dataset:
    """Collect what the settings say, or open --data, of any kind and frame size."""
    if not s.data:
        expect(s.env != "none", "--env none: expected --data to say where the data is")
        collected = dict(size=s.size, frames=s.frames, episode=s.episode, seed=s.data_seed)
        return Dataset(collect(s.env, s.variant, **collected))
    path, frames = Path(s.data), None
    if path.is_dir():
        try:
            frames = np.load(path / "frames.npy", mmap_mode="r", allow_pickle=False).shape[1:]
        except (OSError, ValueError):
            return Dataset(path)  # says what is wrong
    return Dataset(path if frames == (s.size, s.size, 3) else import_data(path, s.size))


def machine(device: torch.device) -> dict:
    """What the numbers of a run were measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        names = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
        name = (*names, platform.processor() or platform.machine())[0]
        name += f" ({torch.backends.cpu.get_cpu_capability()})"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": name, "threads": torch.get_num_threads(), **versions}


def load_metrics(run: Path) -> dict:
    path = run / "metrics.json"
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got: {error}; train anew") from error


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return dict(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        message = f"{path}: expected a whole .npz, got: {error}; run probe or plan anew"
        raise InputError(message) from error


def update_metrics(run: Path, **parts) -> None:
    write_json(run / "metrics.json", load_metrics(run) | parts)


def run_folder(s: Settings) -> Path:
    variant = getattr(envs.ENVS.get(s.env), "VARIANTS", {s.variant: {}})
    variant = "" if s.variant == next(iter(variant)) else f"-{s.variant}"
    env = Path(s.data).stem if s.env == "none" else re.sub(r"[^\w.-]+", "-", s.env)
    return Path(s.out or f"runs/{env}{variant}-{s.method}-s{s.seed}")


def run_train(s: Settings, given: dict, overwrite: bool, resume: bool) -> None:
    run, device = run_folder(s), pick_device(s)
    lead = not dist.is_initialized() or dist.get_rank() == 0  # one process alone writes
    begun, old = (run / "settings.json").exists(), [*run.glob("[!.]*")]
    if resume and begun:
        before = load_settings(run)
        here = {f.name for f in dataclasses.fields(s) if f.metadata["group"] == "machine"}
        other = [k for k, v in given.items() if k not in here and getattr(before, k) != v]
        message = f"{run}: begun with other --{', --'.join(other)}; resume without, or train anew"
        expect(not other, message)
        s = dataclasses.replace(before, **{name: getattr(s, name) for name in here})
    elif lead and old:
        hint = "choose another --out, --resume it, or --overwrite to replace it"
        expect(overwrite, f"{run}: exists already; {hint}")
        expect(begun, f"{run}: not a run folder (no settings.json); it is left as it is")
    if lead:
        settings = partial(write_json, run / "settings.json", dataclasses.asdict(s))
        if not old:  # now: an unwritable place is told at once
            settings()
        try:
            data = open_dataset(s)
            for split in data.episodes:  # now: what training and what comes after it cannot do
                data.windows(split, s.block * (s.sequence - 1))
            if data.world(s):
                planning_tasks(data, s)
        except InputError:  # leave no folder that looks begun, and an earlier run as it is
            if not old:
                shutil.rmtree(run)
            raise
        if old and not resume:
            shutil.rmtree(run)
            settings()
    if dist.is_initialized():
        dist.barrier()
    data = data if lead else open_dataset(s)
    checkpoint = run / "checkpoint.pt"
    model, state = build_model(s, s.block * data.actions.shape[1]).to(device), None
    finished = resume and "train" in load_metrics(run)
    if resume and checkpoint.exists():
        saved, _, state = read_checkpoint(checkpoint, device)
        model = saved if state or finished else model
    parameters = sum(p.numel() for p in model.parameters())
    if finished:
        print(f"{run}: training is finished")
    else:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(csv_log(run / "log.csv", state)) if lead else None
            save = partial(save_checkpoint, checkpoint, model, s) if lead else None
            metrics = train(model, data, s, log, save, state)
        if not lead:
            return
        save_checkpoint(checkpoint, model, s)
        update_metrics(run, train=metrics | {"parameters": parameters}, machine=machine(device))
        spent = f"{s.steps} steps in {metrics['seconds']:.1f} s"
        print(f"{run}: trained {parameters:,} parameters, {spent}")
    if lead:
        run_probe(run, s, model, data)
        run_plan(run, s, model, data)


@contextlib.contextmanager
def csv_log(path: Path, state: dict | None):
    """Yield log(row), which adds a line; a resumed log keeps its lines up to the checkpoint."""
    lines = path.read_text().splitlines(keepends=True) if state and path.exists() else []
    kept = [
        line for n, line in enumerate(lines) if not n or int(line.split(",")[0]) <= state["step"]
    ]
    with replacing(path) as temporary:
        temporary.write_text("".join(kept))
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)

        def log(row: dict) -> None:
            if file.tell() == 0:
                writer.writerow(row)
            writer.writerow(f"{value:.6g}" for value in row.values())
            file.flush()

        yield log


def run_probe(run: Path, s: Settings, model: WorldModel, data: Dataset) -> None:
    probe, latent, arrays = evaluate_latent(model, data, s)
    update_metrics(run, probe=probe, latent=latent)
    save_arrays(run / "latents.npz", arrays)
    world = data.world(s)
    if not probe["linear"]:
        print(f"probes: off, {data.path} has no states, or none that vary")
    else:
        print(f"{'probe R2 on held-out episodes':<32}{'linear':>8}{'MLP':>8}")
    for name in probe["linear"]:
        note = "" if not world or name in world.controlled else " (not controlled)"
        print(f"  {name + note:<30}{probe['linear'][name]:8.4f}{probe['mlp'][name]:8.4f}")
    count = f"{latent['components_95']} components hold 95% of the variance"
    print(f"effective dimension of the latent {latent['effective_dim']:.2f} ({count})")
    print(f"spread of the latent {latent['latent_std']:.3g}")
    steps = min(5, len(latent["rollout_error"]))
    error = latent["rollout_error"][steps - 1]
    print(f"squared rollout error after {steps} steps / latent variance {error:.4f}")


def run_plan(run: Path, s: Settings, model: WorldModel, data: Dataset) -> None:
    if s.env.startswith("gymnasium:"):
        planning = evaluate_reaching(model, data, s)
        update_metrics(run, planning=planning)
        ours, random = planning["distance"], planning["random_distance"]
        print(
            f"planning (n = {s.tasks}): latent distance to the goal at the closest step / start's:"
        )
        return print(f"  {ours:.3f}, random policy {random:.3f}")
    if not data.world(s):
        return print("planning: off, the data is of no environment that can be planned in")
    planning, arrays = evaluate_planning(model, data, s)
    update_metrics(run, planning=planning)
    save_arrays(run / "plans.npz", arrays)
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
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    print(machine(device))
    if s.env in envs.ENVS:
        for name, cls in envs.ENVS.items():
            world = cls(size=s.size)
            world.reset(seed=0)
            action = np.zeros(world.action_space.shape)
            speed = rate(lambda w=world, a=action: w.step(a))
            print(f"{name:<10}{speed:8.0f} env steps with a frame / s on one core")
    world = make_env(s.env, s.variant, s.size)
    model = build_model(s, s.block * world.action_space.shape[0]).to(device)
    model.bf16 = use_bf16(device, s.precision)  # as `train` does
    parts = (model, model.encoder, model.forward_model)
    sizes = [f"{sum(p.numel() for p in part.parameters()):,}" for part in parts]
    print(f"{s.env} model: {sizes[0]} parameters, encoder {sizes[1]}, forward model {sizes[2]}")
    print(f"  (the authors': 15 to 18 million), block {s.block}, latent {s.dim}")
    shape = (s.batch, s.sequence, s.size, s.size, 3)
    obs = torch.randint(256, shape, dtype=torch.uint8, device=device)
    act = torch.randn(s.batch, s.sequence - 1, len(model.act_mean), device=device)
    objective = Objective(model, s, torch.Generator(device).manual_seed(s.seed))
    optimizers = make_optimizers(model, dataclasses.replace(s, lr=0.0))

    def step() -> None:
        with autocast(device, s.precision):
            loss, _ = objective(obs, act)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        wait()

    def multiply() -> None:
        with autocast(device, s.precision):
            square @ square
        wait()

    square = torch.randn(2048, 2048, device=device)
    peak = 2 * 2048**3 * rate(multiply)
    with FlopCounterMode(display=False) as counter:
        step()
    speed = rate(step)
    share = 100 * counter.get_total_flops() * speed / peak
    frames = speed * s.batch * s.sequence
    print(f"  train: {frames:.0f} frames / s, {speed:.1f} steps / s of {s.batch} x {s.sequence}")
    print(f"  {share:.0f}% of the {peak / 1e9:,.0f} GFLOP/s that a 2048 x 2048 product reaches")
    model.eval()
    sizes = dict(horizon=s.horizon, samples=s.samples, elites=s.elites, iterations=s.iterations)
    maps = {"metric": torch.eye(s.dim, device=device)} if s.whiten else {}
    maps |= {"axes": torch.eye(act.shape[-1], device=device)} if s.search == "components" else {}
    search = partial(plan, model, precision=s.precision, **maps, **sizes)
    for tasks in (1, 100):
        frame = obs.flatten(0, 1)[:1].expand(tasks, -1, -1, -1)
        spent = 1 / rate(lambda f=frame: search(f, f).cpu())
        each = f"{1000 * spent / tasks:.1f} ms a task"
        print(f"  plan {tasks} at once: {each}, {1000 * spent:.0f} ms, {sizes}")


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
    if run and (run / "plans.npz").exists():
        path = run / "figures" / "plan.gif"
        with replacing(path) as temporary:
            animate_plan(run, temporary)
        print(path)


ON_RUNS = {  # what each command does, and the groups of settings it takes
    "probe": ("probe the latent of a finished run", "probe machine"),
    "plan": ("plan with a finished run", "planning machine"),
    "figures": ("draw a finished run into its figures/; without one, the environments", ""),
    "report": ("print tables of finished runs as Markdown, published values beside ours", ""),
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
            many = {"figures": "?", "report": "+"}.get(command)
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
            text = "go on with an interrupted run; bit for bit the same on a CPU"
            sub.add_argument("--resume", action="store_true", help=text)
    return parser.parse_args(argv)


@contextlib.contextmanager
def processes():
    """Join the other processes if torchrun started this one."""
    started = "LOCAL_RANK" in os.environ
    if started:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        if started:
            dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    given = vars(parse(sys.argv[1:] if argv is None else argv))
    command, run = given.pop("command"), given.pop("run", None)
    try:
        if command == "train":
            flags = {name: given.pop(name) for name in ("overwrite", "resume")}
            with processes():
                run_train(settings_for(**given), given, **flags)
        elif command == "collect":
            run_collect(settings_for(**given))
        elif command == "bench":
            run_bench(settings_for(**given))
        elif command == "figures":
            run_figures(run)
        elif command == "report":
            print(report(run))
        else:
            model, s = load_checkpoint(run / "checkpoint.pt")
            s = dataclasses.replace(s, **given)
            model.to(pick_device(s))
            {"probe": run_probe, "plan": run_plan}[command](run, s, model, open_dataset(s))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, no permission
        print(f"error: {error}; free that place or choose another", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left to be taken for whole", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
