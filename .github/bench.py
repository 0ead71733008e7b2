"""Print speeds on this machine: python .github/bench.py --env pusht [--networks vit ...]

Environments, a training step, and its share of what a large matrix product reaches; one plan, and
100 together (10 on a CPU), with the published settings. Takes the settings of `smwm.py train`.
"""

import ctypes
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
    for option, value in ((-4, 0), (-1, 2**31 - 1)):  # as smwm.main does
        ctypes.CDLL(None).mallopt(option, value)
    device = torch.device(args.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    gpu = device.type == "cuda"
    print(torch.cuda.get_device_name(device) if gpu else f"{torch.get_num_threads()} threads")
    for name, cls in envs.ENVS.items():
        world = cls(size=s.size)
        world.reset(seed=0)
        action = np.zeros(world.action_space.shape, np.float32)
        speed = rate(lambda w=world, a=action: w.step(a), 1.0)
        print(f"{name:<10}{speed:8.0f} env steps with a frame / s on one core")
    m = envs.make(s.env, s.variant, s.size).action_space.shape[0]
    bf16 = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    model = smwm.build_model(s, m, bf16).to(device)
    frames = torch.randint(256, (4000, s.size, s.size, 3), dtype=torch.uint8, device=device)
    data = smwm.Dataset(frames, torch.randn(4000, m), np.arange(100, 4001, 100))
    with FlopCounterMode(display=False) as counter:
        smwm.train(model, data, smwm.replace(s, steps=1))
    times = []

    def after_step(*_) -> None:
        wait()
        times.append(time.perf_counter())

    smwm.train(model, data, smwm.replace(s, steps=24 if device.type == "cpu" else 504), after_step)
    speed = (len(times) - 5) / (times[-1] - times[4])
    square = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    peak = 2 * 2048**3 * rate(lambda: (square @ square, wait()))
    count = sum(w.numel() for w in model.parameters())
    print(f"{s.env}, {s.networks}, {s.method}: {count:,} parameters")
    print(f"  {speed:.2f} steps / s, {speed * s.batch * s.window:.0f} frames / s")
    share = 100 * counter.get_total_flops() * speed / peak
    print(f"  {share:.0f}% of the {peak / 1e9:,.0f} GFLOP/s that a 2048 x 2048 product reaches")
    sizes = {name: getattr(s, name) for name in ("samples", "elites", "iterations", "horizon")}
    for tasks in (1, 10 if device.type == "cpu" else 100):
        obs = frames[:tasks]
        spent = 1000 / rate(lambda f=obs: smwm.plan(model, f, f, **sizes).cpu())
        print(f"  plan {tasks} at once: {spent / tasks:.1f} ms a task, {sizes}")


if __name__ == "__main__":
    main()
