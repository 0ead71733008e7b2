"""The loss's terms on training and on held-out episodes: python .github/heldout.py RUN ..."""

import sys

import deeper  # noqa: F401, adds its networks and makes smwm importable
import torch

import smwm


@torch.inference_mode()
def main() -> None:
    for run in sys.argv[1:]:
        model, s, _ = smwm.load_checkpoint(run)
        data = smwm.open_dataset(s.data)
        for split in data.episodes:
            generator = torch.Generator().manual_seed(0)
            rows = data.windows(split, s.block * (s.window - 1))
            rows, sums = rows[torch.randperm(len(rows), generator=generator)[:5120]], {}
            for part in rows.split(128):
                obs, act = data.batch(part, s.window, s.block)
                with torch.autocast("cpu", torch.bfloat16, enabled=model.bf16):
                    z, act = model.encode(obs), model.standardise(act)
                    terms = smwm.METHODS[s.method](model, z, act, generator=generator)[1]
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value.item() * len(part) / len(rows)
            text = ", ".join(f"{name} {value:.4f}" for name, value in sums.items())
            print(f"{run}, {split} episodes: {text}", flush=True)


if __name__ == "__main__":
    main()
