"""Tiny sets in exactly the forms in which the papers' data are distributed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from pymtg.data.celeba import DMTG_ATTRIBUTES
from pymtg.data.taskonomy import TASKONOMY5

ATTRIBUTES = ("Bald", *DMTG_ATTRIBUTES[::-1], "Young")


def python2_pickle(content: dict[bytes, object]) -> bytes:
    """Return the bytes that Python 2's cPickle with protocol 2 makes of bytes, lists of ints or bytes, and an array.

    Written by hand: Python 3 pickles bytes otherwise. As in the sets' own files, strings and arrays are memoised.
    """
    memo = iter(range(10**6))

    def put() -> bytes:
        return b"r" + struct.pack("<I", next(memo))

    def text(value: bytes) -> bytes:
        short = len(value) < 256
        head = b"U" + struct.pack("<B", len(value)) if short else b"T" + struct.pack("<i", len(value))
        return head + value + put()

    def number(value: int) -> bytes:
        return b"K" + struct.pack("<B", value) if value < 256 else b"J" + struct.pack("<i", value)

    def array(value: np.ndarray) -> bytes:
        start = b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
        start += number(0) + b"\x85" + put() + text(b"b") + b"\x87" + put() + b"R" + put()
        dtype = b"cnumpy\ndtype\n" + put() + text(b"u1") + number(0) + number(1) + b"\x87" + put() + b"R" + put()
        dtype += b"(" + number(3) + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + put() + b"b"
        shape = b"".join(map(number, value.shape)) + b"\x86" + put()
        return start + b"(" + number(1) + shape + dtype + b"\x89" + text(value.tobytes()) + b"t" + put() + b"b"

    def item(value: object) -> bytes:
        if isinstance(value, bytes):
            return text(value)
        if isinstance(value, np.ndarray):
            return array(value)
        assert isinstance(value, list)
        items = b"".join(number(v) if isinstance(v, int) else text(v) for v in value)
        return b"]" + put() + b"(" + items + b"e"

    pairs = b"".join(text(key) + item(value) for key, value in content.items())
    return b"\x80\x02}" + put() + b"(" + pairs + b"u."


def cifar_parts(classes: int, train: int = 50, test: int = 20, seed: int = 0):
    """Return ((pixels [N, 3072], labels), ...) of training and test images that show their class a little."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (train, test):
        labels = np.arange(count) % classes
        pixels = rng.integers(0, 120, (count, 3072)) + (labels[:, None] * 7919 + np.arange(3072) * 31) % 130
        parts.append((pixels.astype(np.uint8), labels.tolist()))
    return parts


def write_cifar10(directory: Path, form: str = "python", **sizes: int) -> Path:
    """Write cifar-10-batches-py or cifar-10-batches-bin there; return its folder."""
    (pixels, labels), test = cifar_parts(10, **sizes)
    folder = directory / ("cifar-10-batches-py" if form == "python" else "cifar-10-batches-bin")
    folder.mkdir(parents=True)
    parts = {f"data_batch_{i + 1}": (pixels[i::5], labels[i::5]) for i in range(5)} | {"test_batch": test}
    for name, (images, numbers) in parts.items():
        if form == "python":
            content = {
                b"batch_label": b"training batch 1 of 5",
                b"labels": numbers,
                b"data": images,
                b"filenames": [b"image_%d.png" % i for i in range(len(numbers))],
            }
            (folder / name).write_bytes(python2_pickle(content))
        else:
            records = [bytes([n]) + image.tobytes() for n, image in zip(numbers, images, strict=True)]
            (folder / f"{name}.bin").write_bytes(b"".join(records))
    return folder


def write_cifar100(directory: Path, form: str = "python", **sizes: int) -> Path:
    """Write cifar-100-python or cifar-100-binary there; return its folder."""
    parts = dict(zip(("train", "test"), cifar_parts(100, **sizes), strict=True))
    folder = directory / ("cifar-100-python" if form == "python" else "cifar-100-binary")
    folder.mkdir(parents=True)
    for name, (images, numbers) in parts.items():
        coarse = [n // 5 for n in numbers]
        if form == "python":
            content = {b"data": images, b"coarse_labels": coarse, b"fine_labels": numbers, b"batch_label": b"x"}
            (folder / name).write_bytes(python2_pickle(content))
        else:
            records = [bytes([c, n]) + i.tobytes() for c, n, i in zip(coarse, numbers, images, strict=True)]
            (folder / f"{name}.bin").write_bytes(b"".join(records))
    return folder


def write_celeba(
    directory: Path, train: int = 24, val: int = 6, test: int = 8, *, seed: int = 0, spread: bool = False
) -> Path:
    """Write the two text files and img_align_celeba there (`spread`: in Anno, Eval and Img); return the directory."""
    rng = np.random.default_rng(seed)
    anno, evaluation, img = (directory / place if spread else directory for place in ("Anno", "Eval", "Img"))
    images = img / "img_align_celeba"
    for folder in (anno, evaluation, images):
        folder.mkdir(parents=True, exist_ok=True)
    count = train + val + test
    values = np.where(rng.random((count, len(ATTRIBUTES))) < 0.5, 1, -1)
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    rows = [f"{name} " + " ".join(f"{v:2d}" for v in row) for name, row in zip(names, values, strict=True)]
    (anno / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(ATTRIBUTES) + " ", *rows, ""]))
    parts = [0] * train + [1] * val + [2] * test
    lines = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
    (evaluation / "list_eval_partition.txt").write_text("\n".join([*lines, ""]))
    for name, row in zip(names, values, strict=True):
        shade = 128 + 60 * row[:3]
        pixels = np.clip(rng.integers(-20, 20, (218, 178, 3)) + shade, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(images / name, quality=90)
    return directory


def write_taskonomy(
    directory: Path, buildings: dict[str, int], size: int = 32, *, seed: int = 0, by_domain: bool = False
) -> Path:
    """Write so many views of each building there, a tenth of the depth missing; return the directory."""
    rng = np.random.default_rng(seed)
    for building, count in buildings.items():
        for view in range(count):
            depth = rng.integers(200, 6000, (size, size)).astype(np.uint16)
            depth[rng.random((size, size)) < 0.1] = 65535
            pictures = {
                "rgb": rng.integers(0, 256, (size, size, 3)).astype(np.uint8),
                "depth_zbuffer": depth,
                "normal": rng.integers(0, 256, (size, size, 3)).astype(np.uint8),
                "segment_semantic": rng.integers(0, 18, (size, size)).astype(np.uint8),
                "keypoints2d": rng.integers(0, 2000, (size, size)).astype(np.uint16),
                "edge_texture": rng.integers(0, 9000, (size, size)).astype(np.uint16),
            }
            assert set(pictures) == {"rgb", *TASKONOMY5.names}
            for domain, picture in pictures.items():
                folder = directory / domain / building if by_domain else directory / building / domain
                folder.mkdir(parents=True, exist_ok=True)
                name = f"point_{view}_view_{view % 3}_domain_{domain.replace('_semantic', 'semantic')}.png"
                Image.fromarray(picture).save(folder / name)
    return directory
