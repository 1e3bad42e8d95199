"""Figure 5: pictures in a 100-dimensional code space, a flow by maximum likelihood against ours.

CelebA cannot be had everywhere, so the pictures are scikit-learn's digits, or those of a folder. An
autoencoder, trained on the spot, gives the codes that both models learn; a classifier, trained on
the spot, the features of the Fréchet distance. Both flows decode the same noise.

The weights are those that early stopping on held-out codes chose, for both: in 100 dimensions a
flow overfits within a few epochs, and its last weights would be no opponent.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..density import JeffreysDensity
from ..plotting import style
from .claims import Claim, judge
from .data import Split
from .figures import bare, save
from .images import Autoencoder, Classifier, Images, frechet_distance, load_images
from .models import METHODS
from .runs import Arrays, Result, run_all

__all__ = ["plot", "run"]

_SHOWN = (4, 8)


class Sizes(NamedTuple):
    """Epochs of each model, draws for the Fréchet distance, and what the pictures are."""

    autoencoder_epochs: int = 60
    classifier_epochs: int = 20
    epochs: int = 60
    num_samples: int = 2000
    pictures: str = ""


def run(
    out: Path,
    *,
    seeds: list[int] | None = None,
    quick: bool = False,
    jobs: int = 2,
    images: Path | None = None,
) -> list[Claim]:
    """Run the experiment, write `fig5.csv` and `fig5.png`, and return the claims.

    Raises:
        ValueError: If the folder of images holds too few.
        OSError: If there is no such folder.
    """
    sizes = Sizes(1, 1, 1, 200) if quick else Sizes()
    # Before any process starts: a wrong folder should say so at once. Wherever it lies, runs of one
    # folder must not pass for those of another.
    sizes = sizes._replace(pictures=_digest(load_images(images)))
    seeds = ([0] if quick else [0, 1]) if seeds is None else seeds
    runs = {
        f"{method}_seed{seed}": {"method": method, "seed": seed, "images": images}
        for seed in seeds
        for method in METHODS
    }
    table, arrays = run_all(out, "fig5", _train, runs, settings=sizes, jobs=jobs)
    table.to_csv(out / "fig5.csv", index=False)
    flow, ours = (arrays[f"{method}_seed{seeds[0]}"] for method in METHODS)
    save(plot(flow, ours), out / "fig5.png")
    return _claims(table, seeds)


def _digest(images: Images) -> str:
    """Return what tells these pictures and classes from others."""
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in images)).hexdigest()


def _train(*, method: str, seed: int, images: Path | None, settings: Sizes) -> Result:
    torch.manual_seed(seed)
    pictures = load_images(images)
    order = torch.randperm(len(pictures.labels))
    # 60, 15 and 25 %: training, held out, test.
    cuts = (int(0.6 * len(order)), int(0.75 * len(order)))
    train, held_out, test = (
        Images(*(values[rows] for values in pictures)) for rows in torch.tensor_split(order, cuts)
    )
    shape, classes = pictures.pixels.shape[1:], int(pictures.labels.max()) + 1
    autoencoder = Autoencoder(shape).fit(train.pixels, epochs=settings.autoencoder_epochs)
    classifier = Classifier(shape, classes).fit(train, epochs=settings.classifier_epochs)
    codes = Split(*(autoencoder.encode(part.pixels) for part in (train, held_out, test)))

    density = JeffreysDensity(**METHODS[method], seed=seed)
    density.fit(codes.train, codes.validation, test_data=codes.test, max_num_epochs=settings.epochs)
    torch.manual_seed(seed)
    sampled = autoencoder.decode(density.sample(settings.num_samples))

    def distance(pixels: Tensor) -> float:
        return frechet_distance(classifier.features(pixels), classifier.features(test.pixels))

    row = {"method": method, "seed": seed, "epochs": density.summary["epochs_trained"][-1]}
    row |= _judge_codes(density, codes.test)
    row |= {
        "frechet": distance(sampled),
        # Training pictures, and test pictures there and back: what no model of codes can beat.
        "frechet_training": distance(train.pixels),
        "frechet_decoded": distance(autoencoder.decode(codes.test)),
        "accuracy": classifier.accuracy(test),
        "squared_error": (autoencoder.decode(codes.test) - test.pixels).square().mean().item(),
    }
    shown = _SHOWN[0] * _SHOWN[1]
    arrays = {"samples": sampled[:shown].numpy(), "images": test.pixels[:shown].numpy()}
    return Result(pd.DataFrame([row]), arrays)


def _judge_codes(density: JeffreysDensity, codes: Tensor) -> dict[str, Any]:
    losses = density.summary["test_loss"]
    found: dict[str, Any] = {"nll": -density.log_prob(codes).mean().item()}
    found |= {"nll_best": min(losses), "nll_last": losses[-1]}
    if density.has_proxy:
        found["nll_proxy"] = -density.proxy_log_prob(codes).mean().item()
        found["log_partition"] = density.log_partition
        found["effective_sample_size"] = density.summary["effective_sample_size"][-1]
    return found


def _claims(table: pd.DataFrame, seeds: list[int]) -> list[Claim]:
    mean = table.groupby("method").mean(numeric_only=True)
    flow, ours = mean.loc["flow"], mean.loc["ours"]
    wins = table.pivot(index="seed", columns="method", values=["nll", "frechet"])
    nll, frechet = (wins[key]["ours"] < wins[key]["flow"] for key in ("nll", "frechet"))
    return [
        judge(
            "fig5",
            "in the code space of images, ours has the better NLL and Fréchet distance",
            {
                f"NLL {ours['nll']:.2f} against {flow['nll']:.2f} nats, better in "
                f"{int(nll.sum())} of {len(nll)} seeds": bool(nll.all()),
                f"Fréchet distance {ours['frechet']:.2f} against {flow['frechet']:.2f}, better in "
                f"{int(frechet.sum())} of {len(frechet)} seeds": bool(frechet.all()),
            },
            f"training images {ours['frechet_training']:.2f}, decoded test images "
            f"{ours['frechet_decoded']:.2f}; classifier's accuracy {ours['accuracy']:.3f}; proxy's "
            f"NLL {ours['nll_proxy']:.2f} with an effective sample size of "
            f"{ours['effective_sample_size']:.3f}; NLL after the last epoch {ours['nll_last']:.1f} "
            f"against {flow['nll_last']:.1f}; seeds {seeds}",
        )
    ]


def plot(flow: Arrays, ours: Arrays) -> Figure:
    """Return the figure: test images, and samples of both flows from the same noise."""
    parts = {
        "images": ours["images"],
        "flow, max. likelihood": flow["samples"],
        "ours": ours["samples"],
    }
    with style():
        figure = Figure(figsize=(10.2, 1.9), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
        for ax, (title, pictures) in zip(figure.subplots(1, 3), parts.items(), strict=True):
            _tile(ax, pictures)
            ax.set_title(title)
    return figure


def _tile(ax: Axes, pictures: np.ndarray) -> None:
    columns = _SHOWN[1]
    # Of few test images, whole rows.
    rows = len(pictures) // columns
    grid = pictures[: rows * columns].reshape(rows, columns, *pictures.shape[1:])
    # (row, column, channel, y, x) to one picture (row y, column x, channel).
    whole = np.concatenate(np.concatenate(grid.transpose(0, 1, 3, 4, 2), axis=1), axis=1)
    ax.imshow(whole.squeeze(), cmap="gray_r", vmin=0, vmax=1)
    bare(ax)
