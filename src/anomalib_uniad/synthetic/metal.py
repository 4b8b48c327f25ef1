# SPDX-License-Identifier: Apache-2.0
"""Turned and pressed metal parts: a brushed washer and a bottle cap."""

import cv2
import numpy as np

from anomalib_uniad.synthetic import defects
from anomalib_uniad.synthetic.drawing import (
    SIZE,
    Coverage,
    Image,
    axes,
    bevel,
    blend,
    color,
    drop_shadow,
    inside,
    noise,
    polygon,
    profile,
    rounded_box,
    shade,
)
from anomalib_uniad.synthetic.product import Product, Scene

MIDDLE = SIZE / 2


class Washer(Product):
    """A brushed steel washer on a dark mat."""

    name = "washer"
    defects = ("chip", "rust", "scratch")

    def scene(self, rng: np.random.Generator) -> Scene:
        """Draw position, size, light and the pattern of the lathe."""
        return {
            "center": MIDDLE + rng.normal(0, 1.2, 2),
            "outer": rng.normal(78, 0.7),
            "inner": rng.normal(33, 0.5),
            "light": rng.normal(-2.2, 0.06),
            "tone": rng.normal(0.62, 0.02) * rng.normal([1, 1, 1.02], 0.008),
            "seed": int(rng.integers(2**31)),
            "chip": None,
        }

    def paint(self, scene: Scene) -> tuple[Image, Coverage]:
        """Paint the washer, with a notch at its rim if the scene has a chip."""
        rng = np.random.default_rng(scene["seed"])
        x, y = axes(scene["center"])
        radius, theta = np.hypot(x, y), np.arctan2(y, x)
        mat = np.float32(1) + 0.02 * noise(rng, 0.8) + 0.03 * noise(rng, 20)
        image = (color(43, 47, 54) * mat[..., None]).astype(np.float32)
        body = inside(np.maximum(radius - scene["outer"], scene["inner"] - radius))
        if scene["chip"] is not None:
            body = body * (1 - polygon(scene["chip"]))
        image = drop_shadow(image, body, scene["light"], 5)
        # A turned surface reflects along two opposite sectors, like the disc of a record.
        sheen = 0.5 + 0.5 * np.cos(2 * (theta - scene["light"]))
        sheen = 0.72 + 0.5 * sheen**3 + 0.05 * np.cos(theta - scene["light"])
        rings = profile(rng, 400, 0.8)[np.clip(radius * 3.5, 0, 399).astype(int)]
        brushed = sheen * (1 + 0.03 * rings + 0.008 * noise(rng, 0.7))
        metal = np.asarray(scene["tone"], np.float32) * brushed[..., None]
        image = blend(image, np.clip(metal, 0, 1), body)
        image = shade(image, 1.3 * bevel(body, scene["light"], 1.6), body)
        return image.astype(np.float32), body

    def spoil(self, defect: str, scene: Scene, rng: np.random.Generator) -> Image:
        """Chip the rim, corrode or scratch the surface."""
        if defect == "chip":
            rim, side = (scene["outer"], 1) if rng.random() < 0.6 else (scene["inner"], -1)
            theta, depth, half = rng.uniform(0, 2 * np.pi), rng.uniform(8, 15), rng.uniform(8, 16)
            along = np.linspace(-half, half, 9)
            bite = depth * (1 - (along / half) ** 2) + rng.normal(0, 1.3, 9)
            bite[[0, -1]] = 0
            radial = np.concatenate([rim - side * bite, np.full(2, rim + side * 6)])
            tangential = np.concatenate([along, [half, -half]])
            points = np.stack([
                np.cos(theta) * radial - np.sin(theta) * tangential,
                np.sin(theta) * radial + np.cos(theta) * tangential,
            ], axis=1)  # fmt: skip
            return self.paint(scene | {"chip": points + scene["center"]})[0]
        image, body = self.paint(scene)
        if defect == "rust":
            return defects.rust(image, body, rng)
        return defects.scratch(image, body, rng, scene["light"])


class BottleCap(Product):
    """A lacquered crown cap with a printed star, seen from above."""

    name = "bottle_cap"
    defects = ("dent", "misprint", "scratch")

    def scene(self, rng: np.random.Generator) -> Scene:
        """Draw position, rotation, light and print offset."""
        return {
            "center": MIDDLE + rng.normal(0, 1.2, 2),
            "angle": rng.normal(0, 0.025),
            "radius": rng.normal(76, 0.6),
            "light": rng.normal(-2.0, 0.06),
            "lacquer": color(168, 32, 40) * rng.normal(1, 0.025) + rng.normal(0, 0.006, 3),
            "print": rng.normal(0, 0.7, 2),
            "seed": int(rng.integers(2**31)),
            "smear": None,
        }

    @staticmethod
    def _star(x: Coverage, y: Coverage) -> Coverage:
        """Coverage of the printed emblem: a five-pointed star inside a ring."""
        corners = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 31.0, 13.5)
        # Signed distance of a star through its sector: fold the plane into one of ten mirrored wedges.
        radius, theta = np.hypot(x, y), np.arctan2(y, x)
        fold = np.abs((theta - corners[0] + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        px, py = radius * np.cos(fold), radius * np.sin(fold)
        ax, bx, by = reach[0], reach[1] * np.cos(np.pi / 5), reach[1] * np.sin(np.pi / 5)
        length = np.hypot(bx - ax, by)
        distance = ((px - ax) * by - py * (bx - ax)) / length
        ring = np.abs(radius - 43) - 2.2
        return np.maximum(inside(distance), inside(ring))

    def paint(self, scene: Scene) -> tuple[Image, Coverage]:
        """Paint the cap; a smear displaces and thins the print."""
        rng = np.random.default_rng(scene["seed"])
        x, y = axes(scene["center"], scene["angle"])
        radius, theta = np.hypot(x, y), np.arctan2(y, x)
        light = scene["light"]
        belt = np.float32(1) + 0.006 * noise(rng, (1.0, 6.0)) + 0.02 * noise(rng, 25)
        image = (color(202, 198, 189) * belt[..., None]).astype(np.float32)
        teeth = np.cos(21 * theta)
        cap = inside(radius - scene["radius"] - 2.6 * teeth)
        image = drop_shadow(image, cap, light, 6)
        lacquer = np.asarray(scene["lacquer"], np.float32) * (1 + 0.012 * noise(rng, 1.0))[..., None]
        image = blend(image, lacquer, cap)
        facing = np.cos(theta + scene["angle"] - light)
        skirt = np.clip((radius - 56) / 12, 0, 1)
        image = shade(image, skirt * (0.38 * facing + 0.24 * teeth - 0.12), cap)
        rim = np.exp(-(((radius - 57) / 2.6) ** 2))
        image = blend(image, 1.0, (rim * np.clip(0.12 + 0.4 * facing, 0, 1) * cap).astype(np.float32))
        image = blend(image, 1.0, (0.16 * np.exp(-((np.hypot(x + 16, y + 20) / 26) ** 2))).astype(np.float32))
        ink = self._star(x - scene["print"][0], y - scene["print"][1])
        if scene["smear"] is not None:
            missing, ghost, shift = scene["smear"]
            moved = self._star(x - scene["print"][0] - shift[0], y - scene["print"][1] - shift[1])
            ink = np.maximum(ink * (1 - missing), 0.75 * ghost * moved)
        paint = color(238, 226, 190) * (1 + 0.25 * (facing * skirt))[..., None]
        image = blend(image, paint, 0.94 * ink * cap)
        return image.astype(np.float32), inside(radius - 60)

    def spoil(self, defect: str, scene: Scene, rng: np.random.Generator) -> Image:
        """Dent or scratch the cap, or smear its print."""
        if defect == "misprint":
            theta = rng.uniform(0, 2 * np.pi)
            reach = rng.uniform(0, 20) if rng.random() < 0.65 else rng.uniform(40, 46)
            place = scene["center"] + reach * np.array([np.cos(theta), np.sin(theta)])
            x, y = axes(place, rng.uniform(0, np.pi))
            patch = rounded_box(x, y, rng.uniform(12, 19), rng.uniform(8, 13), 6) + 2.5 * noise(rng, 3)
            missing = cv2.GaussianBlur(inside(patch), (0, 0), 0.8)
            ghost = missing if rng.random() < 0.6 else np.zeros_like(missing)
            shift = rng.choice([-1, 1], 2) * rng.uniform(3.5, 7, 2)
            return self.paint(scene | {"smear": (missing, ghost, shift)})[0]
        image, top = self.paint(scene)
        if defect == "dent":
            return defects.dent(image, top, rng, scene["light"])
        return defects.scratch(image, top, rng, scene["light"], gloss=1.8)
