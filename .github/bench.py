"""Print speeds on this machine: python .github/bench.py [--env pusht] [--networks vit ...]

Environments, a training step, and its share of what a large matrix product reaches; one plan and
100 together with the published settings. Takes the settings of `smwm.py train`.
"""

import sys
import time

import numpy as np
import paper_networks  # noqa: F401, registers the paper's pair and makes smwm importable
import torch
from torch.utils.flop_counter import FlopCounterMode

import envs
import smwm


def rate(function, least: float = 3.0) -> float:
    """Calls a second, over `least` seconds, after one to warm up."""
    function()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < least:
        function()
        count += 1
    return count / (time.perf_counter() - start)


def main() -> None:
    args = smwm.parse(["train", *sys.argv[1:]])
    names = [x.name for x in smwm.fields(smwm.Settings)]
    s = smwm.settings_for(**{name: getattr(args, name) for name in names if name in args})
    device = torch.device(args.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    print(smwm.machine(device))
    for name, cls in envs.ENVS.items():
        world = cls(size=s.size)
        world.reset(seed=0)
        action = np.zeros(world.action_space.shape, np.float32)
        speed = rate(lambda w=world, a=action: w.step(a), 1.0)
        print(f"{name:<10}{speed:8.0f} env steps with a frame / s on one core")
    m = envs.make(s.env, s.variant, s.size).action_space.shape[0]
    bf16 = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    model = smwm.build_model(s, m, bf16).to(device).train()
    dtype = torch.bfloat16 if bf16 else torch.float32
    optimizer = smwm.Optimizer(model.parameters(), muon=s.width > 128, dtype=dtype)
    shape = (s.batch, s.window, s.size, s.size, 3)
    obs = torch.randint(256, shape, dtype=torch.uint8, device=device)
    act = torch.randn(s.batch, s.window - 1, s.block * m, device=device)
    square = torch.randn(2048, 2048, device=device, dtype=dtype)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            z = model.encode(obs)
            loss, _ = smwm.METHODS[s.method](model, z, act, lam=s.lam)
        model.zero_grad()
        loss.backward()
        optimizer.step(0.0)
        wait()

    def multiply() -> None:
        square @ square
        wait()

    peak = 2 * 2048**3 * rate(multiply)
    with FlopCounterMode(display=False) as counter:
        step()
    speed = rate(step)
    count = sum(w.numel() for w in model.parameters())
    print(f"{s.env}, {s.networks}, {s.method}: {count:,} parameters")
    print(f"  {speed:.2f} steps / s, {speed * s.batch * s.window:.0f} frames / s")
    share = 100 * counter.get_total_flops() * speed / peak
    print(f"  {share:.0f}% of the {peak / 1e9:,.0f} GFLOP/s that a 2048 x 2048 product reaches")
    model.eval()
    sizes = {name: getattr(s, name) for name in ("samples", "elites", "iterations", "horizon")}
    for tasks in (1, 10 if device.type == "cpu" else 100):
        frames = obs[:1, 0].expand(tasks, -1, -1, -1)
        spent = 1000 / rate(lambda f=frames: smwm.plan(model, f, f, **sizes).cpu())
        print(f"  plan {tasks} at once: {spent / tasks:.1f} ms a task, {sizes}")


if __name__ == "__main__":
    main()
