# SPDX-License-Identifier: Apache-2.0
"""Defects of surfaces: scratches, dents, cracks, stains, rust and particles.

Each function takes the finished image and the coverage of the surface on which the defect may lie, and returns
the changed image. Defects shade, tint or cover what is below them, with soft edges and uneven strength.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_uniad.synthetic.drawing import (
    Coverage,
    Image,
    axes,
    blend,
    blob,
    drop_shadow,
    noise,
    path,
    place_in,
    shade,
    stroke,
)


def _tapered(count: int, width: float) -> NDArray[np.float64]:
    """Return widths that shrink towards both ends of a path."""
    position = np.linspace(0, 1, count)
    return width * np.clip(4 * np.minimum(position, 1 - position) + 0.25, 0, 1)


def scratch(image: Image, region: Coverage, rng: np.random.Generator, light: float, gloss: float = 0.9) -> Image:
    """Cut one to three fine grooves: a bright flank towards the light and a dark one beside it."""
    start, angle = place_in(rng, region, 8), rng.uniform(0, np.pi)
    length, width = rng.uniform(38, 80), rng.uniform(1.8, 2.9)
    for number in range(rng.integers(1, 4)):
        offset = 3.5 * number * np.array([-np.sin(angle), np.cos(angle)])
        half = length * rng.uniform(0.35, 0.5)
        middle = np.asarray(start) + offset + rng.normal(0, 3, 2)
        points = path(rng, middle - half * np.array([np.cos(angle), np.sin(angle)]), angle, 2 * half, 0.006)
        groove = stroke(points, _tapered(len(points), width)) * region
        depth = np.clip(0.85 + 0.2 * noise(rng, 5), 0.35, 1.2).astype(np.float32)
        beside = np.array([[1, 0, -1.2 * np.cos(light)], [0, 1, -1.2 * np.sin(light)]], np.float32)
        flank = cv2.warpAffine(groove, beside, groove.shape)
        image = shade(image, -0.6 * depth, flank * region)
        image = blend(image, np.clip(image * (1 + gloss) + 0.16, 0, 1), groove * np.clip(depth, 0, 1))
    return image


def dent(image: Image, region: Coverage, rng: np.random.Generator, light: float) -> Image:
    """Press a shallow hollow into the surface: dark towards the light, bright on the far wall."""
    center, radius = place_in(rng, region, 10), rng.uniform(8, 15)
    x, y = axes(center, rng.uniform(0, np.pi))
    reach = (x / radius) ** 2 + (y / (radius * rng.uniform(0.6, 0.9))) ** 2
    profile = np.exp(-1.4 * reach).astype(np.float32)
    slope_x, slope_y = cv2.Sobel(profile, cv2.CV_32F, 1, 0), cv2.Sobel(profile, cv2.CV_32F, 0, 1)
    slope = (np.cos(light) * slope_x + np.sin(light) * slope_y) * radius / 16
    image = shade(image, rng.uniform(0.8, 1.2) * slope - 0.16 * profile, region)
    glint = np.clip(2.5 * slope - 0.5, 0, 1) * region
    return blend(image, 0.95, 0.6 * glint)


def crack(image: Image, region: Coverage, rng: np.random.Generator, grain: float | None = None) -> Image:
    """Open a jagged crack with branches, along the grain if there is one; one edge catches light."""
    start, angle = place_in(rng, region, 25), rng.uniform(0, 2 * np.pi)
    if grain is not None:
        angle = grain + rng.choice([0, np.pi]) + rng.normal(0, 0.25)
    length, width = rng.uniform(45, 90), rng.uniform(1.7, 2.8)
    first = np.asarray(start) - 0.4 * length * np.array([np.cos(angle), np.sin(angle)])
    trunk = path(rng, first, angle, length, 0.02, 0.4)
    opening = stroke(trunk, _tapered(len(trunk), width))
    for _ in range(rng.integers(1, 4)):
        fork = trunk[rng.integers(len(trunk) // 4, 3 * len(trunk) // 4)]
        branch = path(rng, fork, angle + rng.choice([-1, 1]) * rng.uniform(0.3, 0.9), length * 0.3, 0.02, 0.4)
        opening = np.maximum(opening, stroke(branch, np.linspace(0.8 * width, 0.5, len(branch))))
    edge = cv2.warpAffine(opening, np.array([[1, 0, 1.3], [0, 1, 1.1]], np.float32), opening.shape)
    image = shade(image, 0.22 * edge, region)
    return blend(image, image * 0.2, opening * region)


def stain(image: Image, region: Coverage, rng: np.random.Generator, tint: NDArray, strength: float = 0.75) -> Image:
    """Let a liquid dry on the surface: a tinted patch, darker along its rim, with splashes beside it."""
    center, radius = place_in(rng, region, 12), rng.uniform(12, 21)
    patch = blob(rng, center, radius)
    for _ in range(rng.integers(0, 4)):
        direction = rng.uniform(0, 2 * np.pi)
        away = radius * rng.uniform(1.2, 1.7) * np.array([np.cos(direction), np.sin(direction)])
        place = np.asarray(center) + away
        patch = np.maximum(patch, blob(rng, tuple(place), rng.uniform(1.5, 3.5), 0.2))
    patch = cv2.GaussianBlur(patch, (0, 0), rng.uniform(0.6, 1.4))
    rim = np.clip(patch - cv2.GaussianBlur(patch, (0, 0), 3.5), 0, 1) * 1.6
    amount = np.clip(patch * (0.62 + 0.1 * noise(rng, 4)) + rim, 0, 1) * strength * region
    # Dyes multiply: the structure below stays visible.
    return blend(image, image * tint * 0.9, amount.astype(np.float32))


def rust(image: Image, region: Coverage, rng: np.random.Generator) -> Image:
    """Corrode a patch: brown and orange grains, dense in the middle, scattered outside."""
    center, radius = place_in(rng, region, 6), rng.uniform(10, 18)
    x, y = axes(center)
    density = np.exp(-((np.hypot(x, y) / radius) ** 2)).astype(np.float32)
    grains = np.clip(4.5 * density + 0.75 * noise(rng, 1.2) + 0.5 * noise(rng, 4) - 1.9, 0, 1)
    grains = (grains * (density > 0.05) * region).astype(np.float32)
    mix = np.clip(0.5 + 0.35 * noise(rng, 1.5), 0, 1)[..., None]
    brown = np.array([0.33, 0.16, 0.07]) * (1 - mix) + np.array([0.66, 0.34, 0.13]) * mix
    return blend(image, brown, 0.92 * grains)


def particles(image: Image, region: Coverage, rng: np.random.Generator, light: float) -> Image:
    """Scatter a few chips or crumbs, each with a lit side and a shadow."""
    center = np.asarray(place_in(rng, region, 14))
    tone = np.array([[0.12, 0.11, 0.1], [0.45, 0.3, 0.16], [0.36, 0.38, 0.42]][rng.integers(3)], np.float32)
    for _ in range(rng.integers(4, 8)):
        place = center + rng.normal(0, 9, 2)
        radius = rng.uniform(3.4, 6.2)
        grain = blob(rng, tuple(place), radius, 0.3) * region
        x, y = axes(tuple(place))
        facing = 0.35 * (np.cos(light) * x + np.sin(light) * y) / radius
        image = drop_shadow(image, grain, light, 2.4, 0.45)
        image = blend(image, tone * (1 + np.clip(facing, -0.5, 0.5))[..., None], grain)
    return image
