"""Pictures: loading of folders, codes, features."""

import numpy as np
import pytest
import torch
from PIL import Image

from sbi_jeffreys.paper.images import Autoencoder, Classifier, Images, load_images


def write(folder, num, *, size=(40, 30), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(num):
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_digits():
    images = load_images()
    assert images.pixels.shape == (1797, 1, 16, 16)
    assert images.pixels.min() >= 0
    assert images.pixels.max() <= 1
    assert set(images.labels.tolist()) == set(range(10))


def test_folder_with_classes(tmp_path):
    write(tmp_path / "b", 60)
    write(tmp_path / "a" / "deeper", 40, size=(10, 33), seed=1)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    images = load_images(tmp_path)
    assert images.pixels.shape == (100, 3, 32, 32)
    assert images.labels.tolist() == [0] * 40 + [1] * 60


def test_folder_without_classes_is_clustered(tmp_path):
    write(tmp_path, 100, size=(8, 8))
    images = load_images(tmp_path)
    assert images.labels.shape == (100,)
    assert images.labels.max() < 10


def test_a_wide_picture_is_cropped_in_its_middle(tmp_path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    for i in range(100):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    with pytest.warns(Warning, match="distinct clusters"):  # scikit-learn's, all are the same
        assert load_images(tmp_path).pixels.min() == 1


def test_folders_of_no_use(tmp_path):
    with pytest.raises(OSError, match="no folder of images"):
        load_images(tmp_path / "missing")
    write(tmp_path, 3)
    with pytest.raises(ValueError, match="holds 3 pictures; give at least 100"):
        load_images(tmp_path)


def test_a_broken_picture_is_named(tmp_path):
    write(tmp_path, 3)
    whole = sorted(tmp_path.iterdir())[0]
    whole.write_bytes(whole.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"{whole.name} cannot be read: .* Remove it"):
        load_images(tmp_path)


@pytest.mark.parametrize("damaged", ["chunk", "header"])
def test_a_damaged_picture_is_named(damaged, tmp_path):
    write(tmp_path, 3)
    path = tmp_path / "bad.ppm"
    path.write_bytes(b"P6\n2\x010 20\n255\n")
    if damaged == "chunk":
        noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
        path = tmp_path / "bad.png"
        (tmp_path / "bad.ppm").unlink()
        Image.fromarray(noise).save(path)
        content = bytearray(path.read_bytes())
        second = content.find(b"IDAT", content.find(b"IDAT") + 4)
        content[second : second + 4] = b"\x10\xc0D\xb6"
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read: .* Remove it"):
        load_images(tmp_path)


def test_codes_come_back():
    torch.manual_seed(0)
    # Pictures on a plane: two numbers each.
    plane = torch.rand(300, 2) @ torch.rand(2, 64)
    pixels = (plane / plane.max()).reshape(300, 1, 8, 8)
    model = Autoencoder(torch.Size((1, 8, 8)), num_codes=5).fit(pixels, epochs=60)
    codes = model.encode(pixels)
    assert codes.shape == (300, 5)
    # Normalised by running moments, plus noise of 0.1.
    assert torch.allclose(codes.std(dim=0), torch.ones(5), atol=0.2)
    error = (model.decode(codes) - pixels).square().mean()
    assert error < 0.2 * pixels.var()
    assert not torch.equal(codes, model.encode(pixels))  # the noise is fresh


def test_classifier_learns_and_its_features_have_their_shape():
    torch.manual_seed(0)
    labels = torch.randint(2, (300,))
    pixels = torch.rand(300, 1, 4, 4) * 0.5 + 0.5 * labels.reshape(-1, 1, 1, 1)
    images = Images(pixels, labels)
    model = Classifier(torch.Size((1, 4, 4)), 2, num_features=6).fit(images, epochs=20)
    assert model.accuracy(images) > 0.95
    assert model.features(pixels).shape == (300, 6)
