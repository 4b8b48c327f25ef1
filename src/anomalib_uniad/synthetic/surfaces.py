# SPDX-License-Identifier: Apache-2.0
"""Textured surfaces: a woven fabric and an oak board."""

import cv2
import numpy as np

from anomalib_uniad.synthetic import defects
from anomalib_uniad.synthetic.drawing import (
    SIZE,
    Coverage,
    Image,
    axes,
    blend,
    blob,
    color,
    noise,
    place_in,
    profile,
    shade,
    stroke,
)
from anomalib_uniad.synthetic.product import Product, Scene

EVERYWHERE = np.ones((SIZE, SIZE), np.float32)


class Fabric(Product):
    """Plain weave of undyed warp and blue weft, six pixels per thread."""

    name = "fabric"
    defects = ("broken_thread", "hole", "stain")
    pitch = 6.0

    def scene(self, rng: np.random.Generator) -> Scene:
        """Draw shift, rotation, stretch and yarn."""
        return {
            "shift": rng.uniform(0, 2 * self.pitch, 2),
            "angle": rng.normal(0, 0.02),
            "stretch": rng.normal(1, 0.008, 2),
            "light": rng.normal(-1.9, 0.15),
            "warp": color(158, 164, 170) * rng.normal(1, 0.015) + rng.normal(0, 0.003, 3),
            "weft": color(96, 118, 148) * rng.normal(1, 0.015) + rng.normal(0, 0.003, 3),
            "seed": int(rng.integers(2**31)),
        }

    def _threads(self, scene: Scene) -> tuple[Coverage, Coverage, Coverage, Coverage]:
        """Return thread coordinates u, v (in threads) with the slight waviness of a real cloth."""
        rng = np.random.default_rng(scene["seed"])
        x, y = axes((SIZE / 2, SIZE / 2), scene["angle"])
        u = (x * scene["stretch"][0] + scene["shift"][0] + 0.35 * noise(rng, (10.0, 2.0))) / self.pitch
        v = (y * scene["stretch"][1] + scene["shift"][1] + 0.35 * noise(rng, (2.0, 10.0))) / self.pitch
        thick_u = profile(rng, 64, 0)[np.floor(u).astype(int) % 64]
        thick_v = profile(rng, 64, 0)[np.floor(v).astype(int) % 64]
        return u, v, thick_u, thick_v

    def paint(self, scene: Scene) -> tuple[Image, Coverage]:
        """Paint the cloth."""
        return self._weave(scene, None), EVERYWHERE

    def _weave(self, scene: Scene, cut: tuple[int, Coverage] | None) -> Image:
        """Interlace warp and weft; ``cut`` names a warp thread and where it is missing."""
        u, v, thick_u, thick_v = self._threads(scene)
        rng = np.random.default_rng(scene["seed"] + 1)
        column, row = np.floor(u), np.floor(v)
        du, dv = u - column - 0.5, v - row - 0.5
        over = ((column + row) % 2 == 0).astype(np.float32)
        cut_here = np.zeros((SIZE, SIZE), np.float32)
        if cut is not None:
            cut_here = cut[1] * (column == cut[0])
        over = over * (1 - cut_here)
        fibres_warp = 0.05 * noise(rng, (5.0, 0.6)) + 0.02 * thick_u
        fibres_weft = 0.05 * noise(rng, (0.6, 5.0)) + 0.02 * thick_v
        # Each thread is a cylinder which dives below its neighbour at both ends of a float.
        round_u, round_v = 1 - (2 * du) ** 2, 1 - (2 * dv) ** 2
        lit_warp = (0.62 + 0.42 * round_u - 0.12 * np.sin(2 * du)) * (0.78 + 0.22 * round_v) + fibres_warp
        lit_weft = (0.62 + 0.42 * round_v - 0.12 * np.sin(2 * dv)) * (0.78 + 0.22 * round_u) + fibres_weft
        below = np.asarray(scene["weft"]) * lit_weft[..., None]
        above = np.asarray(scene["warp"]) * lit_warp[..., None]
        image = blend(below, above, cv2.GaussianBlur(over, (0, 0), 0.5))
        gap = np.clip(cut_here * (1 - 1.2 * round_v), 0, 1)
        return shade(image, -0.55 * cv2.GaussianBlur(gap, (0, 0), 0.6) - 0.12 * cut_here)

    def spoil(self, defect: str, scene: Scene, rng: np.random.Generator) -> Image:
        """Break a thread, tear a hole or spill oil."""
        if defect == "broken_thread":
            u, _, _, _ = self._threads(scene)
            x, y = place_in(rng, EVERYWHERE, 40)
            rows = axes((x, y))[1]
            half = rng.uniform(22, 45)
            gap = np.clip(half - np.abs(rows), 0, 1).astype(np.float32)
            image = self._weave(scene, (int(np.floor(u[int(y), int(x)])), gap))
            for side in (-1, 1):
                # The loose end curls up and casts a small shadow.
                start, heading = (x, y + side * half), side * np.pi / 2 + rng.normal(0, 0.9)
                turn = np.cumsum(np.full(9, rng.choice([-1, 1]) * rng.uniform(0.1, 0.35)))
                steps = 2.2 * np.stack([np.cos(heading + np.pi + turn), np.sin(heading + np.pi + turn)], 1)
                points = np.concatenate([[start], np.asarray(start) + np.cumsum(steps, axis=0)])
                image = shade(image, -0.35 * cv2.GaussianBlur(stroke(points + 1.5, 3.6), (0, 0), 1.2))
                end = stroke(points, np.linspace(3.6, 1.8, len(points)))
                image = blend(image, np.asarray(scene["warp"]) * 1.2, end)
            return image
        image, _ = self.paint(scene)
        center = place_in(rng, EVERYWHERE, 30)
        if defect == "hole":
            dx, dy = axes(center)
            radius = rng.uniform(8, 15)
            pull = np.exp(-((np.hypot(dx, dy) / (1.7 * radius)) ** 2))
            image = shade(image, (-0.12 * pull).astype(np.float32))
            opening = blob(rng, center, radius, 0.2)
            frayed = cv2.GaussianBlur(opening, (0, 0), 1.0) + 0.22 * noise(rng, (1.5, 0.7)) * (pull > 0.4)
            return blend(image, color(24, 22, 24), np.clip(1.6 * frayed - 0.4, 0, 1).astype(np.float32))
        return defects.stain(image, EVERYWHERE, rng, color(112, 84, 50), 0.95)


class Oak(Product):
    """A planed oak board with straight grain and pores."""

    name = "oak"
    defects = ("crack", "gouge", "spill")

    def scene(self, rng: np.random.Generator) -> Scene:
        """Draw grain direction, tone and texture."""
        return {
            "angle": rng.normal(0, 0.04),
            "light": rng.normal(-0.9, 0.15),
            "tone": color(186, 142, 94) * rng.normal(1, 0.03) + rng.normal(0, 0.006, 3),
            "seed": int(rng.integers(2**31)),
        }

    def paint(self, scene: Scene) -> tuple[Image, Coverage]:
        """Paint growth rings, fibres and pores, all along the grain."""
        rng = np.random.default_rng(scene["seed"])
        _, y = axes((SIZE / 2, SIZE / 2), scene["angle"])
        bend = 4.0 * noise(rng, (25.0, 60.0)) + 1.0 * noise(rng, (6.0, 30.0))
        across = np.clip((y + bend + 130) * 3, 0, 799)
        rings = profile(rng, 800, 14)[across.astype(int)]
        fine = profile(rng, 800, 3)[across.astype(int)]
        turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), -float(np.degrees(scene["angle"])), 1.0)

        def along_grain(field: Coverage) -> Coverage:
            turned = cv2.warpAffine(field, turn, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)
            return np.asarray(turned, np.float32)

        fibres = along_grain(noise(rng, (0.7, 16.0)))
        pores = along_grain(np.clip(noise(rng, (0.6, 5.0)) - 1.7, 0, 1.2))
        value = 1 + 0.06 * rings + 0.02 * fine + 0.025 * fibres + 0.03 * noise(rng, 40)
        image = np.asarray(scene["tone"], np.float32) * value[..., None]
        image = image * (1 + 0.02 * rings[..., None] * np.array([0.0, 0.3, 1.0], np.float32))
        return shade(image.astype(np.float32), -0.3 * pores), EVERYWHERE

    def spoil(self, defect: str, scene: Scene, rng: np.random.Generator) -> Image:
        """Split, gouge or wet the board."""
        image, board = self.paint(scene)
        if defect == "crack":
            return defects.crack(image, board, rng, grain=scene["angle"])
        if defect == "gouge":
            image = defects.scratch(image, board, rng, scene["light"], gloss=0.35)
            return defects.dent(image, board, rng, scene["light"])
        return defects.stain(image, board, rng, color(72, 42, 44), 0.72)
