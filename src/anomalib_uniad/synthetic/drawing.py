# SPDX-License-Identifier: Apache-2.0
"""Drawing primitives: antialiased shapes, noise fields, paths and blending.

All images are float arrays of shape ``(SIZE, SIZE, 3)``, RGB in [0, 1]; coverages are ``(SIZE, SIZE)`` in
[0, 1]. Points are ``(x, y)`` in pixels from the top left corner.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 192
"""Side of every product image in pixels."""

# Float arrays; OpenCV's annotations do not say which numbers it returns.
Image = NDArray[Any]
Coverage = NDArray[Any]
Points = NDArray[Any]

# Shapes are filled on a canvas this many times larger and averaged down, which antialiases them.
_OVERSAMPLING = 4


def axes(center: Sequence[float] = (0.0, 0.0), angle: float = 0.0) -> tuple[Coverage, Coverage]:
    """Return x and y of every pixel relative to a center, turned by an angle in radians."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    x, y = x - np.float32(center[0]), y - np.float32(center[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def inside(distance: NDArray) -> Coverage:
    """Turn a signed distance in pixels (negative inside) into a coverage with a one pixel edge."""
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def rounded_box(x: Coverage, y: Coverage, half_width: float, half_height: float, radius: float) -> Coverage:
    """Return the signed distance to a rectangle with rounded corners, centered at the origin."""
    dx, dy = np.abs(x) - half_width + radius, np.abs(y) - half_height + radius
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return (outside + np.minimum(np.maximum(dx, dy), 0) - radius).astype(np.float32)


def noise(rng: np.random.Generator, scale: float | tuple[float, float]) -> Coverage:
    """Return smooth noise with mean 0 and deviation 1.

    Args:
        rng: Random source.
        scale: Gaussian smoothing in pixels, or one for rows (y) and one for columns (x).
            Zero gives white noise.
    """
    sigma_y, sigma_x = scale if isinstance(scale, tuple) else (scale, scale)
    field: Coverage = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    if sigma_x > 0 or sigma_y > 0:
        field = cv2.GaussianBlur(field, (0, 0), max(sigma_x, 0.01), sigmaY=max(sigma_y, 0.01))
    return ((field - field.mean()) / field.std()).astype(np.float32)


def profile(rng: np.random.Generator, length: int, scale: float) -> NDArray[np.float32]:
    """Return smooth noise along a line, mean 0 and deviation 1."""
    line: Points = rng.standard_normal((1, length)).astype(np.float32)
    line = cv2.GaussianBlur(line, (0, 0), max(scale, 0.01))[0]
    return ((line - line.mean()) / line.std()).astype(np.float32)


def color(*values: float) -> NDArray[np.float32]:
    """Return an RGB color from values in 0 to 255."""
    return (np.asarray(values) / 255).astype(np.float32)


def blend(image: Image, top: NDArray | float, coverage: Coverage) -> Image:
    """Lay a color or an image over another one."""
    alpha = coverage[..., None]
    return (image * (1 - alpha) + np.asarray(top, np.float32) * alpha).astype(np.float32)


def shade(image: Image, amount: Coverage, coverage: Coverage | float = 1.0) -> Image:
    """Brighten (positive) or darken (negative) a surface in proportion to its own color."""
    return (image * (1 + amount * coverage)[..., None]).astype(np.float32)


def drop_shadow(image: Image, coverage: Coverage, light: float, height: float = 4.0, strength: float = 0.45) -> Image:
    """Darken what lies next to an object, on the side away from the light."""
    shift = np.array([[1, 0, -height * np.cos(light)], [0, 1, -height * np.sin(light)]], np.float32)
    shadow = cv2.warpAffine(coverage, shift, (SIZE, SIZE))
    shadow = cv2.GaussianBlur(shadow, (0, 0), height * 0.6) * (1 - coverage)
    return shade(image, -strength * shadow)


def bevel(coverage: Coverage, light: float, width: float = 1.5) -> Coverage:
    """Return the shading of a raised edge: positive facing the light, negative on the other side."""
    soft = cv2.GaussianBlur(coverage, (0, 0), width)
    slope_x, slope_y = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    return (-(np.cos(light) * slope_x + np.sin(light) * slope_y) * width * 0.25).astype(np.float32)


def polygon(points: Points) -> Coverage:
    """Fill a closed polygon."""
    canvas = np.zeros((SIZE * _OVERSAMPLING,) * 2, np.uint8)
    cv2.fillPoly(canvas, [np.round((points + 0.5) * _OVERSAMPLING).astype(np.int32)], 255)
    return cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def strokes(lines: Sequence[Points], widths: NDArray | float) -> Coverage:
    """Draw polylines whose width, in pixels, may differ at every point."""
    canvas = np.zeros((SIZE * _OVERSAMPLING,) * 2, np.uint8)
    for points in lines:
        width = np.broadcast_to(np.asarray(widths, np.float64), (len(points),))
        corners = np.round((points + 0.5) * _OVERSAMPLING).astype(np.int32)
        for first, second, mean in zip(corners[:-1], corners[1:], (width[:-1] + width[1:]) / 2, strict=True):
            cv2.line(canvas, first.tolist(), second.tolist(), 255, max(round(float(mean) * _OVERSAMPLING), 1))
    return cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def stroke(points: Points, widths: NDArray | float) -> Coverage:
    """Draw one polyline whose width, in pixels, may differ at every point."""
    return strokes([points], widths)


def path(
    rng: np.random.Generator,
    start: Sequence[float] | Points,
    angle: float,
    length: float,
    bend: float = 0.05,
    kink: float = 0.0,
) -> Points:
    """Walk from a point in steps of about two pixels.

    Args:
        rng: Random source.
        start: First point.
        angle: Direction in radians at the start.
        length: Length of the walk in pixels.
        bend: Deviation of the curvature, smooth along the walk, in radians per step.
        kink: Deviation of a change of direction at each step that is not smooth, in radians.
    """
    count = max(int(length / 2), 3)
    turns = np.cumsum(rng.normal(0, bend / 3, count)) + rng.normal(0, bend / 3)
    headings = angle + np.cumsum(turns) + rng.normal(0, kink, count)
    steps = 2 * np.stack([np.cos(headings), np.sin(headings)], 1)
    return np.concatenate([[start], np.asarray(start) + np.cumsum(steps, axis=0)])


def blob(rng: np.random.Generator, center: Sequence[float], radius: float, roughness: float = 0.2) -> Coverage:
    """Return an irregular round patch; roughness is the deviation of the radius as a fraction of it."""
    x, y = axes(center)
    theta = np.arctan2(y, x)
    outline = np.ones_like(theta)
    for order in range(2, 8):
        phase, height = rng.uniform(0, 2 * np.pi), np.clip(rng.normal(), -2, 2)
        outline = outline + 1.6 * roughness / order * height * np.cos(order * theta + phase)
    return inside(np.hypot(x, y) - radius * np.clip(outline, 0.5, 1.6))


def place_in(rng: np.random.Generator, region: Coverage, margin: int = 0) -> tuple[float, float]:
    """Pick a point inside a region, at least ``margin`` pixels away from its edge if there is one."""
    solid = (region > 0.9).astype(np.uint8)
    eroded = cv2.erode(solid, np.ones((2 * margin + 1,) * 2, np.uint8), borderValue=0) if margin else solid
    rows, columns = np.nonzero(eroded if eroded.any() else solid)
    index = rng.integers(len(rows))
    return float(columns[index]), float(rows[index])
