# SPDX-License-Identifier: Apache-2.0
"""Procedural textures on which the packaged backbone is trained.

A *texture class* is a generator family with fixed parameters and a fixed palette; every rendering of it draws
a new noise field, phase and small parameter changes. The families are generic (noise spectra, gratings,
checks, cells, dots, strokes, shards, gradients). They share no code with the product images of
:mod:`anomalib_uniad.synthetic`, so a backbone trained on them has never seen a product or its defects.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Float32; OpenCV's annotations do not say which numbers it returns.
Field = NDArray[Any]
Parameters = dict[str, Any]


def _grid(size: int) -> tuple[Field, Field]:
    """Return row and column coordinates in units of image sides, shape (size, size) each."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    return rows, columns


def _equalized(field: NDArray) -> Field:
    """Squash a field of roughly normal values to [0, 1], keeping its contrast fixed."""
    return (1 / (1 + np.exp(-2 * (field - field.mean()) / (field.std() + 1e-6)))).astype(np.float32)


def spectral_noise(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Noise with a power-law spectrum, stretched along one orientation."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    along = np.cos(p["angle"]) * fx + np.sin(p["angle"]) * fy
    across = -np.sin(p["angle"]) * fx + np.cos(p["angle"]) * fy
    radius = np.sqrt((along * p["stretch"]) ** 2 + across**2) + 1 / size
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * radius ** -p["decay"]
    return _equalized(np.fft.irfft2(spectrum, s=(size, size)))


def bandpass_noise(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Noise limited to a frequency band, in all directions or around one."""
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None, :] * size
    radius = np.sqrt(fx**2 + fy**2) + 1e-3
    band = np.exp(-(((radius - p["frequency"]) / (p["bandwidth"] * p["frequency"])) ** 2))
    turn = np.cos(2 * (np.arctan2(fy, fx) - p["angle"]))
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * band * np.exp(p["directed"] * (turn - 1))
    return _equalized(np.fft.irfft2(spectrum, s=(size, size)))


def _warped_axes(size: int, rng: np.random.Generator, p: Parameters) -> tuple[Field, Field]:
    """Return rotated, jittered and gently warped coordinates."""
    rows, columns = _grid(size)
    angle = p["angle"] + rng.normal(0, 0.04)
    u = np.cos(angle) * columns + np.sin(angle) * rows
    v = -np.sin(angle) * columns + np.cos(angle) * rows
    field = rng.standard_normal((2, size, size)).astype(np.float32).transpose(1, 2, 0)
    smooth = cv2.GaussianBlur(field, (0, 0), 9)
    smooth *= p["warp"] / (smooth.std() + 1e-6)
    return u + smooth[..., 0] + rng.random(), v + smooth[..., 1] + rng.random()


def grating(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Stripes with a soft or a hard edge."""
    u, _ = _warped_axes(size, rng, p)
    wave = np.sin(2 * np.pi * p["frequency"] * u) - p["duty"]
    return (1 / (1 + np.exp(-p["sharpness"] * wave))).astype(np.float32)


def checks(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Checkerboards, grids of lines and brick bonds."""
    u, v = _warped_axes(size, rng, p)
    v = v * p["aspect"]
    if p["kind"] == 0:
        wave = np.sin(2 * np.pi * p["frequency"] * u) * np.sin(2 * np.pi * p["frequency"] * v)
    else:
        row = np.floor(v * p["frequency"])
        shifted = u * p["frequency"] + (0.5 * row if p["kind"] == 2 else 0)
        border = 0.5 - np.maximum(np.abs(shifted % 1 - 0.5), np.abs(v * p["frequency"] % 1 - 0.5))
        wave = 1 - border / p["joint"]
    return (1 / (1 + np.exp(-p["sharpness"] * wave))).astype(np.float32)


def cells(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Voronoi cells: distance to the centre, to the border, or a value per cell."""
    count = max(int(p["frequency"] ** 2), 4)
    centers = rng.random((count, 2)).astype(np.float32) * size
    labels_in = np.full((size, size), 255, np.uint8)
    labels_in[centers[:, 0].astype(int) % size, centers[:, 1].astype(int) % size] = 0
    distance, labels = cv2.distanceTransformWithLabels(labels_in, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    if p["kind"] == 0:
        return np.clip(distance * p["frequency"] / size, 0, 1).astype(np.float32)
    value = rng.random(int(labels.max()) + 1).astype(np.float32)[labels]
    if p["kind"] == 1:
        return value
    edge = cv2.morphologyEx(value, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return cv2.GaussianBlur((edge > 0).astype(np.float32), (0, 0), p["joint"] * 6 + 0.4)


def dots(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Spots or rings on a square lattice, a staggered lattice, or at random."""
    canvas = np.zeros((size * 2, size * 2), np.float32)
    pitch = 2 * size / p["frequency"]
    if p["kind"] == 2:
        centers = rng.random((int(p["frequency"] ** 2), 2)) * 2 * size
    else:
        rows, columns = np.mgrid[-1 : p["frequency"] + 2, -1 : p["frequency"] + 2].reshape(2, -1)
        columns = columns + (0.5 * (rows % 2) if p["kind"] == 1 else 0)
        centers = (np.stack([rows, columns], 1) + rng.random(2)) * pitch
        centers = centers + rng.normal(0, p["warp"] * pitch * 4, centers.shape)
    thickness = -1 if p["filled"] else max(int(pitch * 0.12), 1)
    for row, column in centers:
        radius = max(pitch * p["radius"] * rng.uniform(0.85, 1.15), 1.0)
        place = (int(column * 16), int(row * 16))
        cv2.circle(canvas, place, int(radius * 16), 1.0, thickness, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA), (0, 0), p["blur"])


def strokes(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Short line segments around one orientation or in all of them."""
    canvas = np.zeros((size, size), np.float32)
    for _ in range(int(p["frequency"] * 10)):
        angle = p["angle"] + rng.normal(0, p["spread"])
        center, half = rng.random(2) * size, size * p["length"] * rng.uniform(0.5, 1)
        step = half * np.array([np.cos(angle), np.sin(angle)])
        first, last = np.round((center - step) * 16).astype(np.int32), np.round((center + step) * 16).astype(np.int32)
        cv2.line(canvas, first.tolist(), last.tolist(), float(rng.uniform(0.3, 1)), p["thickness"], cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), p["blur"])


def shards(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Overlapping random polygons with flat values."""
    canvas = np.full((size, size), 0.5, np.float32)
    for _ in range(int(p["frequency"] * 6)):
        count = p["corners"]
        angles = np.sort(rng.random(count) * 2 * np.pi)
        radius = size * p["length"] * rng.uniform(0.4, 1, count)
        corners = rng.random(2) * size + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
        cv2.fillPoly(canvas, [np.round(corners * 16).astype(np.int32)], float(rng.random()), cv2.LINE_AA, 4)
    return canvas


def gradient(size: int, rng: np.random.Generator, p: Parameters) -> Field:
    """Nearly flat surfaces: a weak gradient with fine grain."""
    rows, columns = _grid(size)
    angle = rng.random() * 2 * np.pi
    slope = np.cos(angle) * columns + np.sin(angle) * rows
    grain = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), p["blur"])
    return np.clip(0.5 + 0.3 * (slope - slope.mean()) + p["grain"] * grain / (grain.std() + 1e-6), 0, 1)


FAMILIES: tuple[Callable[[int, np.random.Generator, Parameters], Field], ...] = (
    spectral_noise,
    bandpass_noise,
    grating,
    checks,
    cells,
    dots,
    strokes,
    shards,
    gradient,
)


def draw_texture_class(index: int, seed: int) -> Parameters:
    """Draw the fixed parameters of one texture class.

    Args:
        index: Number of the class; the family is ``index % len(FAMILIES)``.
        seed: Seed of the whole set of classes.

    Returns:
        Parameters of the family and a palette of two colours, ``(2, 3)`` in [0, 1].
    """
    # Few palettes, shared between families: colour alone must not tell two classes apart.
    rng = np.random.default_rng([seed, 1, index // len(FAMILIES) % 12])
    base = rng.uniform(0.08, 0.92, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0.1, 0.9))
    shift = rng.uniform(-0.5, 0.5, 3) if rng.random() < 0.5 else np.full(3, rng.choice([-1, 1]) * rng.uniform(0.1, 0.5))
    palette = np.clip(np.stack([base, base + shift]), 0.02, 0.98)
    rng = np.random.default_rng([seed, 2, index])
    return {
        "family": index % len(FAMILIES),
        "angle": rng.uniform(0, np.pi),
        "stretch": rng.choice([1.0, 1.0, 3.0, 8.0]),
        "decay": rng.uniform(0.4, 2.2),
        "frequency": int(np.exp(rng.uniform(np.log(4), np.log(26)))),
        "bandwidth": rng.uniform(0.1, 0.5),
        "directed": rng.choice([0.0, 2.0, 8.0]),
        "warp": rng.choice([0.0, 0.004, 0.012]),
        "duty": rng.uniform(-0.6, 0.6),
        "sharpness": np.exp(rng.uniform(np.log(1.5), np.log(20))),
        "aspect": rng.choice([1.0, 1.0, 0.5, 2.0]),
        "kind": int(rng.integers(3)),
        "joint": rng.uniform(0.05, 0.2),
        "radius": rng.uniform(0.18, 0.45),
        "filled": rng.random() < 0.7,
        "blur": rng.uniform(0.4, 1.5),
        "spread": rng.choice([0.05, 0.3, 3.0]),
        "length": rng.uniform(0.04, 0.25),
        "thickness": int(rng.integers(1, 4)),
        "corners": int(rng.integers(3, 7)),
        "grain": rng.uniform(0.0, 0.12),
        "palette": palette,
    }


def render_texture(parameters: Parameters, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render one image of a texture class.

    Args:
        parameters: As :func:`draw_texture_class` returns them.
        size: Side of the square image in pixels.
        rng: Source of everything that differs between two images of the class.

    Returns:
        RGB image of shape ``(size, size, 3)``.
    """
    field = FAMILIES[parameters["family"]](size, rng, parameters)[..., None]
    palette = parameters["palette"] + rng.normal(0, 0.015, (2, 3))
    image = palette[0] * (1 - field) + palette[1] * field
    return np.clip(image * 255, 0, 255).astype(np.uint8)


def render_region(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the soft mask of a region that is filled with another texture.

    Args:
        size: Side of the square mask in pixels.
        rng: Source of shape, size and place.

    Returns:
        Coverage in [0, 255], shape ``(size, size)``: blobs, polygons, ellipses, bands, thin lines and dust.
    """
    kind = rng.integers(6)
    mask = np.zeros((size, size), np.float32)
    center = rng.random(2) * size
    if kind == 0:
        noise = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), rng.uniform(4, 12))
        mask = np.clip(4 * (noise / noise.std() - rng.uniform(-0.3, 1.2)), 0, 1).astype(np.float32)
    elif kind == 1:
        angles = np.sort(rng.random(rng.integers(3, 8)) * 2 * np.pi)
        corners = center + np.stack([np.cos(angles), np.sin(angles)], 1) * size * rng.uniform(0.08, 0.5)
        cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    elif kind == 2:
        axes = np.round(size * rng.uniform(0.04, 0.4, 2)).astype(int) + 1
        place = tuple(int(value) for value in center)
        cv2.ellipse(mask, place, tuple(int(a) for a in axes), float(rng.uniform(0, 180)), 0, 360, 1.0, -1, cv2.LINE_AA)
    elif kind == 3:
        rows, columns = _grid(size)
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.5, 1)
        side = (np.cos(angle) * columns + np.sin(angle) * rows - offset) * size
        mask = (np.clip(side, 0, 1) * np.clip(size * rng.uniform(0.1, 0.8) - side, 0, 1)).astype(np.float32)
    elif kind == 4:
        points = np.cumsum(rng.normal(0, size * 0.12, (rng.integers(3, 7), 2)), axis=0) + center
        cv2.polylines(
            mask, [np.round(points * 16).astype(np.int32)], False, 1.0, int(rng.integers(1, 4)), cv2.LINE_AA, 4
        )
    else:
        for place in center + rng.normal(0, size * 0.2, (rng.integers(1, 12), 2)):
            spot = tuple(int(value * 16) for value in place)
            cv2.circle(mask, spot, int(size * rng.uniform(0.01, 0.06) * 16), 1.0, -1, cv2.LINE_AA, 4)
    return (mask * 255).astype(np.uint8)
