"""Print the README's tables from results/ and results-gpu/: python .github/report.py [RUN ...]

A row is a data set, a setting and a method; seeds share it. Seeds have other tasks, so the interval
(Wilson's, 95%) is over all of them. The runs of a GPU are listed beside those of the CPU.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import strokes  # noqa: E402, F401  (adds its environment)

import envs  # noqa: E402
import smwm  # noqa: E402

DATA = {"strokes": "pusht, strokes"}  # other data of an environment
PUBLISHED = json.loads((HERE / "published.json").read_text())


def grouped(runs: list[Path]) -> list[tuple[smwm.Settings, list[dict]]]:
    """Settings and the metrics of each seed, in the order of the environments and methods."""
    groups = {}
    for run in sorted(run for run in runs if (run / "metrics.json").exists()):
        s = smwm.Settings(**json.loads((run / "settings.json").read_text()))
        lam = 0.0 if s.method == "forward" else s.lam  # which that method does not use
        group = smwm.replace(s, seed=0, lam=lam, data="")  # the data follows from the rest
        groups.setdefault(group, []).append(json.loads((run / "metrics.json").read_text()))
    order, methods = [*envs.ENVS], [*smwm.METHODS]

    def key(group):
        s = group[0]
        place = order.index(DATA.get(s.env, s.env).split(",")[0]), s.env in DATA
        changes = s.history, s.steps, s.frames, s.networks, "λ" in label(s)
        return *place, *changes, methods.index(s.method)

    return sorted(groups.items(), key=key)


def mean(values: list[float], digits: int = 1) -> str:
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"
    return text


def table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def label(s: smwm.Settings) -> str:
    default = smwm.settings_for(env=s.env, method=s.method)
    text = DATA.get(s.env, s.env)
    text += f", P={s.history}" if s.history > 1 else ""
    text += f", λ={s.lam:g}" if s.lam not in (default.lam, 0) else ""  # 0: of forward-only
    text += f", {s.steps // 1000}k" if s.steps != default.steps else ""
    text += f" {s.frames / 1e6:.1f}M" if s.frames != default.frames else ""
    return text + (f", {s.networks}" if s.networks != "conv" else "")


def results(groups, gpu: dict) -> str:
    header = "env|method|solved|95%|paper|CPU|GPU|random|paper|hard|hard, random|min"
    rows = []
    for s, seeds in groups:
        published = PUBLISHED["planning"].get(s.env, {})
        ours = PUBLISHED["planning"].get(f"{s.env} history {s.history}", published)
        plans, card = ([m["planning"] for m in x] for x in (seeds, gpu.get(s, [])))
        tasks = sum(p["tasks"] for p in plans)
        hits = round(sum(p["tasks"] * p["success"] for p in plans) / 100)
        low, high = smwm.interval95(np.arange(tasks) < hits)
        left = [p["unsolved_tasks"] for p in plans]
        keys = "success_unsolved", "random_unsolved"
        share, chance = (np.average([p[key] for p in plans], weights=left) for key in keys)
        minutes = np.mean([m["train"]["seconds"] / 60 for m in seeds])
        rows.append([label(s), s.method, f"{100 * hits / tasks:.3g}", f"{low:.0f}-{high:.0f}"])
        rows[-1] += [ours.get(s.method, "-")]
        rows[-1] += [" ".join(f"{p['success']:.0f}" for p in x) or "-" for x in (plans, card)]
        rows[-1] += [f"{np.mean([p['random'] for p in plans]):.0f}", published.get("random", "-")]
        rows[-1] += [f"{share:.0f}", f"{chance:.0f}", f"{minutes:.0f}"]
    return table(header.split("|"), rows)


def probes(groups) -> str:
    """Of SMWM and SIGReg with history 1, the same steps and seeds, for what is published. Of the
    rows with more steps only the longest, on more data, is shown."""
    longest = 16_000, 1_200_000
    groups = [x for x in groups if x[0].steps <= 5000 or (x[0].steps, x[0].frames) == longest]
    groups = [x for x in groups if x[0].history == 1]
    known = [(s, seeds) for s, seeds in groups if s.env in PUBLISHED["probe"]]
    found = {(label(s), s.method): seeds for s, seeds in known}
    rows = []
    for env in dict.fromkeys(env for env, _ in found):
        if len({len(found.get((env, method), [])) for method in ("smwm", "sigreg")}) > 1:
            continue
        for name, published in PUBLISHED["probe"][env.split(",")[0]].items():
            row = [env, name.replace("orientation", "angle")]
            for method in ("smwm", "sigreg"):
                seeds = found[env, method]
                for kind, theirs in zip(("linear", "mlp"), published[method], strict=True):
                    ours = [m["probe"][kind][name] for m in seeds]
                    row += [f"{np.mean(ours):.3f}", theirs]
            rows.append(row)
    header = "env|held-out R² of|SMWM, linear|paper|MLP|paper|SIGReg, linear|paper|MLP|paper"
    return table(header.split("|"), rows)


def effective_rank(spectrum: list[float]) -> float:
    """The exponential of the spectrum's entropy, the measure of the authors' notebooks."""
    share = np.array(spectrum) / np.sum(spectrum)
    return float(np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum()))


def toys(groups) -> str:
    rows = []
    for s, seeds in groups:
        world, latent = envs.make(s.env, s.variant, s.size), [m["latent"] for m in seeds]
        linear = {
            k: np.mean([m["probe"]["linear"][k] for m in seeds])
            for k in seeds[0]["probe"]["linear"]
        }
        kept = [v for k, v in linear.items() if k in world.controlled]
        dropped = {k: v for k, v in linear.items() if k not in world.controlled}
        dropped = [f"{k.replace(' 1', '').split()[-1]} {v:.2f}" for k, v in dropped.items()]
        rank = mean([effective_rank(x["spectrum"]) for x in latent], 2)
        theirs = PUBLISHED["effective_rank"].get(s.variant) if s.method == "smwm" else None
        name = s.variant if s.env == "dotworld" else f"{s.env} {s.variant}"
        rows.append([name + (f", {s.method}" if s.method != "smwm" else ""), s.steps])
        rows[-1] += [mean([x["effective_dim"] for x in latent], 2), rank]
        rows[-1] += [
            f"{theirs[1]} ({theirs[0]})" if theirs else "-",
            f"{min(kept):.4f}" if kept else "-",
        ]
        rows[-1] += [", ".join(dropped) or "-", f"{np.mean([x['spread'] for x in latent]):.2g}"]
        solved = [np.mean([m["planning"][key] for m in seeds]) for key in ("success", "random")]
        trivial = solved[1] == 100  # without control every task is solved at its start
        rows[-1] += ["-", "-"] if trivial else [f"{x:.0f}" for x in solved]
    header = "world|steps|dim.|rank|paper (true)|R²|R², others|spread|solved %|random"
    return table(header.split("|"), rows)


def tables(runs: list[Path], gpu: list[Path]) -> list[str]:
    groups = grouped(runs)
    small = [group for group in groups if group[0].env in ("dotworld", "sprite")]
    large = [group for group in groups if group[0].env not in ("dotworld", "sprite")]
    texts = [results(large, dict(grouped(gpu))), probes(large)] if large else []
    return texts + ([toys(small)] if small else [])


def main() -> None:
    names = [Path(x) for x in sys.argv[1:] if x != "--check"]
    gpu = [*(HERE / "results-gpu").iterdir()]
    runs = [*(HERE / "results").iterdir()]
    texts = tables(names, []) if names else tables(runs, gpu)
    if "--check" not in sys.argv:
        return print("\n\n".join(texts))
    readme = (HERE.parent / "README.md").read_text()
    shown = {line for line in readme.splitlines() if line.startswith("|")}
    if lines := shown ^ {line for text in texts for line in text.splitlines()}:
        sys.exit("README and results differ:\n" + "\n".join(sorted(lines)))


if __name__ == "__main__":
    main()
