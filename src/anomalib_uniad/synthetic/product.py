# SPDX-License-Identifier: Apache-2.0
"""What all products share: from a painted scene to a picture, and the mask of a defect."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_uniad.synthetic.drawing import SIZE, Coverage, Image, axes, noise, shade

Scene = dict[str, Any]

# A pixel belongs to a defect if it differs by at least this much (7 of 255 grey levels) from the good product.
VISIBLE = 7 / 255


class Product(ABC):
    """One product category: how a good sample looks and what can go wrong with it.

    A *scene* holds everything that varies between samples (pose, light, colours, texture seed) as plain values.
    :meth:`paint` is a function of the scene alone, so painting the same scene with and without a defect gives
    two pictures which differ in the defect only.
    """

    name: ClassVar[str]
    """Name of the category, also its folder."""

    defects: ClassVar[tuple[str, ...]]
    """Defect types, also folder names."""

    light_variation: ClassVar[float] = 0.08
    """Deviation of brightness across the picture."""

    @abstractmethod
    def scene(self, rng: np.random.Generator) -> Scene:
        """Draw one sample of the product: pose, light direction (``light``, radians), colours, texture seed."""

    @abstractmethod
    def paint(self, scene: Scene) -> tuple[Image, Coverage]:
        """Paint a scene; returns the image and the coverage of the surface on which defects may lie."""

    @abstractmethod
    def spoil(self, defect: str, scene: Scene, rng: np.random.Generator) -> Image:
        """Paint a scene with a defect of the given type."""

    def render(self, rng: np.random.Generator, defect: str | None = None) -> tuple[NDArray, NDArray]:
        """Take one picture.

        Args:
            rng: Random source; equal states give equal bytes. The scene is drawn before the defect, so the same
                state without a defect gives the good twin of a defective picture.
            defect: One of :attr:`defects`, or ``None`` for a good sample. Defaults to ``None``.

        Returns:
            RGB image ``(192, 192, 3)`` and mask ``(192, 192)`` with 255 where the defect is visible, both uint8.
        """
        scene = self.scene(rng)
        lens = _Lens(rng, scene["light"], self.light_variation)
        good = lens.project(self.paint(scene)[0])
        if defect is None:
            return lens.expose(good), np.zeros((SIZE, SIZE), np.uint8)
        while True:
            spoiled = lens.project(self.spoil(defect, scene, rng))
            changed = (np.abs(spoiled - good).max(axis=2) >= VISIBLE).astype(np.uint8)
            # Close pinholes where a defect happens to match the product, drop single stray pixels.
            mask = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
            mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)) | changed
            if mask.sum() >= 60:
                return lens.expose(spoiled), mask * 255


class _Lens:
    """One shot of a camera: uneven light, white balance, focus and sensor noise."""

    def __init__(self, rng: np.random.Generator, light: float, variation: float) -> None:
        x, y = axes((SIZE / 2, SIZE / 2))
        ramp = (np.cos(light) * x + np.sin(light) * y) / (SIZE / 2)
        self.falloff = (rng.uniform(0.3, 1.0) * variation * ramp).astype(np.float32)
        self.gain = np.float32(rng.uniform(0.96, 1.04)) * rng.normal(1, 0.004, 3).astype(np.float32)
        self.blur = rng.uniform(0.45, 0.6)
        deviation = rng.uniform(0.005, 0.009)
        self.grain = np.stack([noise(rng, 0) for _ in range(3)], axis=2) * np.float32(deviation)

    def project(self, image: Image) -> Image:
        """Apply light and optics; what reaches the sensor."""
        lit = np.clip(shade(image, self.falloff) * self.gain, 0, 1).astype(np.float32)
        return np.asarray(cv2.GaussianBlur(lit, (0, 0), self.blur), np.float32)

    def expose(self, image: Image) -> NDArray[np.uint8]:
        """Add sensor noise and quantise."""
        return np.clip(np.round((image + self.grain) * 255), 0, 255).astype(np.uint8)
