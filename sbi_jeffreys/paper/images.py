"""Images as points of a 100-dimensional space: data, autoencoder, classifier, Fréchet distance."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from scipy.linalg import sqrtm
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = [
    "Autoencoder",
    "Classifier",
    "Images",
    "check_folder",
    "frechet_distance",
    "load_images",
]

_SIZE = {"digits": 16, "folder": 32}
_WIDTH = 256
# Classes for pictures without labels, found by clustering.
_CLUSTERS = 10


class Images(NamedTuple):
    """Pictures (n, channels, side, side) between 0 and 1, and classes (n,)."""

    pixels: Tensor
    labels: Tensor


def load_images(folder: Path | None = None) -> Images:
    """Return the pictures of a folder, or scikit-learn's digits upsampled to 16 x 16.

    Args:
        folder: Pictures of any size and format that Pillow reads, cropped to a square and scaled to
            32 x 32 in colour. Subfolders are classes; without them, clusters take their place.

    Raises:
        ValueError: If the folder holds fewer than 100 pictures, or one that is broken or too large.
        OSError: If there is no such folder.
    """
    if folder is None:
        digits = load_digits()
        pixels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        pixels = F.interpolate(pixels, size=_SIZE["digits"], mode="bilinear").clamp(0, 1)
        return Images(pixels, torch.from_numpy(digits.target))
    check_folder(folder)
    pictures, names = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as picture:
                pictures.append(_square(picture))
        except UnidentifiedImageError:
            continue
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read: {error} Remove it.") from None
        names.append(path.relative_to(folder).parts[0] if path.parent != folder else "")
    if len(pictures) < 100:
        raise ValueError(f"{folder} holds {len(pictures)} pictures; give at least 100.")
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    classes = sorted(set(names))
    if len(classes) > 1:
        return Images(pixels, torch.tensor([classes.index(name) for name in names]))
    clusters = KMeans(_CLUSTERS, n_init=1, random_state=0).fit_predict(pixels.flatten(1).numpy())
    return Images(pixels, torch.from_numpy(clusters).long())


def check_folder(folder: Path) -> None:
    """Raise NotADirectoryError if there is no such folder."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder of images.")


def _square(picture: Image.Image) -> np.ndarray:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((_SIZE["folder"],) * 2, Image.Resampling.BILINEAR))


class Autoencoder(nn.Module):
    """Multi-layer perceptron to a code and back, trained with noise on the code.

    The codes have mean 0 and variance 1 in every entry. The noise makes neighbours in the code
    space neighbours in pixels; :meth:`encode` adds it as well, so that codes fill their space and
    have a density, whatever the dimension of the pictures.

    Args:
        shape: Shape of a picture.
        num_codes: Dimension of the code.
        noise: Standard deviation of the noise.
    """

    def __init__(self, shape: torch.Size, *, num_codes: int = 100, noise: float = 0.1) -> None:
        super().__init__()
        pixels = shape.numel()
        self.noise = noise
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, _WIDTH),
            nn.SiLU(),
            nn.Linear(_WIDTH, num_codes),
            nn.BatchNorm1d(num_codes, affine=False),
        )
        self.decoder = nn.Sequential(
            nn.Linear(num_codes, _WIDTH),
            nn.SiLU(),
            nn.Linear(_WIDTH, pixels),
            nn.Sigmoid(),
            nn.Unflatten(1, shape),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the pictures as they come back from noisy codes."""
        return self.decoder(self._noisy(self.encoder(pixels)))

    def _noisy(self, codes: Tensor) -> Tensor:
        return codes + self.noise * torch.randn_like(codes)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return noisy codes, shape (n, num_codes)."""
        return self._noisy(self.eval().encoder(pixels))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return pictures for codes of shape (n, num_codes)."""
        return self.eval().decoder(codes)

    def fit(self, pixels: Tensor, *, epochs: int) -> "Autoencoder":
        """Train on pictures by squared error."""
        _descend(self, [pixels], lambda x: (self(x) - x).square().flatten(1).sum(1).mean(), epochs)
        return self


class Classifier(nn.Module):
    """Classifier whose last hidden layer is the feature space of the Fréchet distance."""

    def __init__(self, shape: torch.Size, num_classes: int, *, num_features: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(shape.numel(), _WIDTH),
            nn.SiLU(),
            nn.Linear(_WIDTH, num_features),
            nn.SiLU(),
        )
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits, shape (n, num_classes)."""
        return self.head(self.body(pixels))

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return features, shape (n, num_features)."""
        return self.body(pixels)

    @torch.no_grad()
    def accuracy(self, images: Images) -> float:
        """Return the fraction of pictures whose class is found."""
        return (self(images.pixels).argmax(dim=1) == images.labels).float().mean().item()

    def fit(self, images: Images, *, epochs: int) -> "Classifier":
        """Train on labelled pictures."""
        _descend(self, list(images), lambda x, y: F.cross_entropy(self(x), y), epochs)
        return self


def _descend(module: nn.Module, data: list[Tensor], loss, epochs: int) -> None:
    adam = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0])).split(100):
            # A batch of one has no variance to normalise by.
            if len(rows) > 1:
                adam.zero_grad(set_to_none=True)
                loss(*(values[rows] for values in data)).backward()
                adam.step()
    module.eval()


def frechet_distance(one: Tensor, other: Tensor) -> float:
    r"""Return the Fréchet distance of Gaussians with the moments of two sets of features.

    .. math:: \|\mu_1 - \mu_2\|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2
        - 2 (\Sigma_1 \Sigma_2)^{1/2})

    Args:
        one: Shape (n, k).
        other: Shape (m, k).

    References:
        GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), arXiv 1706.08500, eq. 6
    """
    means, covariances = [], []
    for features in (one, other):
        values = features.double().numpy()
        means.append(values.mean(axis=0))
        covariances.append(np.cov(values, rowvar=False))
    with warnings.catch_warnings():
        # Features that never fire make the product singular, which its root survives.
        warnings.simplefilter("ignore")
        root = np.real(sqrtm(covariances[0] @ covariances[1]))
    spread = np.trace(covariances[0] + covariances[1] - 2 * root)
    return float(((means[0] - means[1]) ** 2).sum() + spread)
