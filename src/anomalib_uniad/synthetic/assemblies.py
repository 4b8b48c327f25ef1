# SPDX-License-Identifier: Apache-2.0
"""Products made of parts: a tablet blister and a circuit board."""

import cv2
import numpy as np
from numpy.typing import NDArray

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
    rounded_box,
    shade,
    strokes,
)
from anomalib_uniad.synthetic.product import Product, Scene

MIDDLE = SIZE / 2


class Blister(Product):
    """An aluminium blister with six scored tablets."""

    name = "blister"
    defects = ("broken_tablet", "discolored_tablet", "missing_tablet", "particle")
    pockets = np.array([(x, y) for y in (-56, 0, 56) for x in (-36, 36)], np.float64)

    def scene(self, rng: np.random.Generator) -> Scene:
        """Draw the pose of the blister and of every tablet in its pocket."""
        return {
            "center": MIDDLE + rng.normal(0, 1.2, 2),
            "angle": rng.normal(0, 0.01),
            "light": rng.normal(-2.3, 0.06),
            "offset": np.clip(rng.normal(0, 0.7, (6, 2)), -1.4, 1.4),
            "turn": rng.normal(0.6, 0.25, 6),
            "tone": color(236, 228, 206) * rng.normal(1, 0.01) + rng.normal(0, 0.003, 3),
            "seed": int(rng.integers(2**31)),
            "missing": None,
            "broken": None,
            "discolored": None,
        }

    def paint(self, scene: Scene) -> tuple[Image, Coverage]:
        """Paint foil, pockets, tablets and the clear domes above them."""
        rng = np.random.default_rng(scene["seed"])
        x, y = axes(scene["center"], scene["angle"])
        light = scene["light"]
        image = (color(64, 74, 88) * (1 + 0.012 * noise(rng, 1))[..., None]).astype(np.float32)
        foil = inside(rounded_box(x, y, 76, 88, 12))
        image = drop_shadow(image, foil, light, 5)
        emboss = np.sin((x + y) * 2 * np.pi / 7) * np.sin((x - y) * 2 * np.pi / 7)
        gloss = 0.66 + 0.035 * emboss + 0.025 * noise(rng, 12) + 0.008 * noise(rng, 1)
        image = blend(image, gloss[..., None] * np.array([1.0, 1.005, 1.02]), foil)
        tablets = np.zeros((SIZE, SIZE), np.float32)
        for index, pocket in enumerate(self.pockets):
            px, py = x - pocket[0], y - pocket[1]
            dome = inside(np.hypot(px, py) - 25.5)
            image = shade(image, 0.8 * bevel(dome, light + np.pi, 2.2) - 0.16 * dome)
            if scene["missing"] != index:
                image, tablet = self._tablet(image, scene, index, px, py)
                tablets = np.maximum(tablets, tablet)
            # Reflections on the clear dome: a soft window and a thin rim.
            hx, hy = px + 9, py + 11
            image = blend(image, 1.0, (0.24 * np.exp(-((hx / 7) ** 2 + (hy / 4.5) ** 2))).astype(np.float32))
            rim = np.exp(-(((np.hypot(px, py) - 24) / 1.1) ** 2)) * np.clip(
                np.cos(np.arctan2(py, px) + scene["angle"] - light), 0, 1
            )
            image = blend(image, 1.0, (0.4 * rim).astype(np.float32))
        return image, tablets

    def _tablet(self, image: Image, scene: Scene, index: int, px: Coverage, py: Coverage) -> tuple[Image, Coverage]:
        """Lay one tablet into its pocket."""
        rng = np.random.default_rng([scene["seed"], index])
        tx, ty = px - scene["offset"][index][0], py - scene["offset"][index][1]
        cos, sin = np.cos(scene["turn"][index]), np.sin(scene["turn"][index])
        tablet = inside(np.hypot(tx, ty) - 19.5)
        if scene["broken"] is not None and scene["broken"][0] == index:
            _, direction, depth, rough = scene["broken"]
            edge = np.cos(direction) * tx + np.sin(direction) * ty + rough
            tablet = tablet * inside(edge - depth)
        light = scene["light"]
        image = drop_shadow(image, tablet, light, 3, 0.4)
        tone = np.asarray(scene["tone"], np.float32) * (1 + 0.015 * noise(rng, 0.8))[..., None]
        if scene["discolored"] is not None and scene["discolored"][0] == index:
            _, tint, patch = scene["discolored"]
            tone = blend(tone, tone * tint, patch)
        score = np.exp(-(((cos * ty - sin * tx) / 1.3) ** 2))
        image = blend(image, np.clip(tone * (1 - 0.1 * score)[..., None], 0, 1), tablet)
        return shade(image, 0.55 * bevel(tablet, light, 2.4), tablet), tablet

    def spoil(self, defect: str, scene: Scene, rng: np.random.Generator) -> Image:
        """Take out, break or discolour a tablet, or let dirt fall on one."""
        index = int(rng.integers(6))
        if defect == "missing_tablet":
            return self.paint(scene | {"missing": index})[0]
        if defect == "broken_tablet":
            fracture = (index, rng.uniform(0, 2 * np.pi), rng.uniform(-4, 11), 1.3 * noise(rng, 2.5))
            return self.paint(scene | {"broken": fracture})[0]
        if defect == "discolored_tablet":
            tints = [(0.9, 0.72, 0.4), (0.7, 0.58, 0.46), (0.66, 0.82, 0.56), (0.9, 0.6, 0.56)]
            speckle = np.clip(0.75 + 0.3 * noise(rng, rng.uniform(2, 7)), 0, 1).astype(np.float32)
            return self.paint(scene | {"discolored": (index, np.array(tints[rng.integers(4)]), speckle)})[0]
        image, tablets = self.paint(scene)
        return defects.particles(image, tablets, rng, scene["light"])


class CircuitBoard(Product):
    """A small green board with one chip, six chip resistors, a connector row and traces."""

    name = "circuit_board"
    defects = ("missing_part", "scratch", "solder_bridge", "twisted_part")
    parts = np.array([(-62, -62), (-62, -34), (-62, -6), (58, -58), (58, -22), (58, 14)], np.float64)
    pins = np.arange(-3, 4) * 10.0
    connector = np.array([(x, 66) for x in (-60, -40, -20, 0, 20, 40, 60)], np.float64)

    def scene(self, rng: np.random.Generator) -> Scene:
        """Draw the pose of the board and the placement errors of its parts."""
        return {
            "center": MIDDLE + rng.normal(0, 0.6, 2),
            "angle": rng.normal(0, 0.005),
            "light": rng.normal(-2.1, 0.06),
            "placement": np.clip(rng.normal(0, 0.3, (6, 2)), -0.8, 0.8),
            "turn": rng.normal(0, 0.02, 6),
            "mask": color(22, 94, 58) * rng.normal(1, 0.02) + rng.normal(0, 0.003, 3),
            "seed": int(rng.integers(2**31)),
            "missing": None,
            "bridge": None,
        }

    def paint(self, scene: Scene) -> tuple[Image, Coverage]:
        """Paint solder mask, traces, pads and parts."""
        rng = np.random.default_rng(scene["seed"])
        x, y = axes(scene["center"], scene["angle"])
        light = scene["light"]
        grain = 1 + 0.012 * noise(rng, 0.8) + 0.015 * noise(rng, 12)
        image = np.asarray(scene["mask"], np.float32) * grain[..., None]
        image = shade(image.astype(np.float32), 0.03 * np.sin(x * 2 * np.pi / 5) * np.sin(y * 2 * np.pi / 5))
        traces = self._to_image(scene, self._traces)
        image = blend(image, np.asarray(scene["mask"], np.float32) * 1.55 + 0.02, 0.85 * traces)
        image = shade(image, 0.5 * bevel(traces, light, 1.0))
        wetting = 0.04 * noise(rng, 1.5)
        texture = noise(rng, 0.8)
        for px, py in self.connector:
            ring = inside(np.hypot(x - px, y - py) - 7)
            image = self._solder(image, ring, light, color(206, 170, 92), wetting)
            image = blend(image, color(14, 14, 13), inside(np.hypot(x - px, y - py) - 3.2))
        leads = np.zeros_like(x)
        for pin in self.pins:
            leads = np.maximum(leads, inside(rounded_box(np.abs(x) - 30, y + 14 - pin, 8, 2.6, 1)))
        if scene["bridge"] is not None:
            leads = np.maximum(leads, scene["bridge"])
        image = self._solder(image, leads, light, color(190, 192, 196), wetting)
        body = inside(rounded_box(x, y + 14, 26, 38, 2))
        image = drop_shadow(image, body, light, 4)
        image = blend(image, color(36, 37, 40) * (1 + 0.06 * texture)[..., None], body)
        image = shade(image, 1.2 * bevel(body, light, 1.5), body)
        marking = inside(np.hypot(x + 17, y + 43) - 3.2)
        for row, lengths in enumerate(((5, 9, 3, 7), (8, 4, 10))):
            left = -14.0
            for length in lengths:
                marking = np.maximum(marking, inside(rounded_box(x - left - length / 2, y + 18 - 11 * row, length / 2,
                                                                 2.4, 0.5)))  # fmt: skip
                left += length + 2.4
        image = blend(image, color(168, 170, 170), 0.7 * marking)
        for index in range(len(self.parts)):
            image = self._resistor(image, scene, index, (x, y), wetting, texture)
        return image, np.ones_like(x)

    @property
    def _traces(self) -> list[NDArray]:
        """Center lines of the copper traces, in board coordinates."""
        lines = [np.array([(-38.0, -44 + 10 * i), (-46.0 - 1.2 * i, -44 + 10 * i), (-62 + 14, part)])
                 for i, part in ((0, -62), (3, -34), (5, -6))]  # fmt: skip
        lines += [
            np.array([(38.0, -44 + 10 * i), (46.0, part), (44.0, part)]) for i, part in ((0, -58), (2, -22), (4, 14))
        ]
        lines += [
            np.array([(x * 0.5, 26.0), (x * 0.5, 34.0), (x, 50.0), (x, 60.0)]) for x in (-60, -40, -20, 0, 20, 40, 60)
        ]
        lines += [np.array([(72.0, part), (84.0, part), (84.0, part + 34)]) for part in (-58.0, -22.0, 14.0)]
        return lines

    @staticmethod
    def _to_image(scene: Scene, lines: list[NDArray]) -> Coverage:
        """Draw board lines, three pixels wide, in the pose of the scene."""
        cos, sin = np.cos(scene["angle"]), np.sin(scene["angle"])
        turn = np.array([[cos, sin], [-sin, cos]])
        return strokes([line @ turn + scene["center"] for line in lines], 3.0)

    @staticmethod
    def _solder(image: Image, shape: Coverage, light: float, tone: NDArray, wetting: Coverage) -> Image:
        """Wet a shape with shiny solder or gold."""
        image = blend(image, tone * (1 + wetting)[..., None], shape)
        return shade(image, 1.1 * bevel(shape, light, 1.3), shape)

    def _resistor(
        self,
        image: Image,
        scene: Scene,
        index: int,
        position: tuple[Coverage, Coverage],
        wetting: Coverage,
        texture: Coverage,
    ) -> Image:
        """Place one chip resistor on its two pads."""
        px, py = position[0] - self.parts[index][0], position[1] - self.parts[index][1]
        pads = inside(rounded_box(np.abs(px) - 12, py, 5.5, 6.5, 1))
        image = self._solder(image, pads, scene["light"], color(196, 192, 180), wetting)
        if scene["missing"] == index:
            return image
        px, py = px - scene["placement"][index][0], py - scene["placement"][index][1]
        cos, sin = np.float32(np.cos(scene["turn"][index])), np.float32(np.sin(scene["turn"][index]))
        px, py = cos * px + sin * py, cos * py - sin * px
        body = inside(rounded_box(px, py, 13, 6.5, 1))
        image = drop_shadow(image, body, scene["light"], 2.5)
        image = blend(image, color(214, 210, 202) * (1 + 0.03 * texture)[..., None], body)
        top = inside(rounded_box(px, py, 8.5, 6.5, 0.5))
        image = blend(image, color(30, 31, 36) * (1 + 0.08 * texture)[..., None], top)
        image = shade(image, 0.9 * bevel(body, scene["light"], 1.2), body)
        digits = inside(rounded_box(np.abs(px) - 3.2, py, 1.6, 2.6, 0.8))
        return blend(image, color(190, 190, 186), 0.75 * digits)

    def spoil(self, defect: str, scene: Scene, rng: np.random.Generator) -> Image:
        """Leave out or twist a part, short two pins or scratch the solder mask."""
        index = int(rng.integers(len(self.parts)))
        if defect == "missing_part":
            return self.paint(scene | {"missing": index})[0]
        if defect == "twisted_part":
            turn, placement = scene["turn"].copy(), scene["placement"].copy()
            turn[index] = rng.choice([-1, 1]) * rng.uniform(0.4, 1.1)
            placement[index] = rng.normal(0, 2.5, 2)
            return self.paint(scene | {"turn": turn, "placement": placement})[0]
        if defect == "solder_bridge":
            x, y = axes(scene["center"], scene["angle"])
            pin = self.pins[rng.integers(len(self.pins) - 1)] - 14
            side = rng.choice([-1, 1])
            px, py = x - side * rng.uniform(32, 36), y - pin - 5
            waist = rng.uniform(5.5, 8.5)
            bridge = np.abs(px) - waist - 1.1 * (py / 4) ** 2 + 0.5 * noise(rng, 3)
            bridge = np.maximum(bridge, np.abs(py) - 7.5)
            return self.paint(scene | {"bridge": cv2.GaussianBlur(inside(bridge), (0, 0), 0.6)})[0]
        image, board = self.paint(scene)
        return defects.scratch(image, board, rng, scene["light"], gloss=3.2)
