# SPDX-License-Identifier: Apache-2.0
"""Train the backbone that the package ships, ``resnet10_synthetic``, from scratch on generated textures.

The task is dense texture recognition: each image shows one texture class with a random region (blob, polygon,
band, thin line, dust) filled by another, under random lighting, contrast, blur and noise, and the network
names the class at every position of its maps at strides 4, 8, 16 and 32. To do so it has to keep apart local
structure, scale, orientation and colour, which is what anomaly detection compares.

No photograph and no product image takes part: all images come from ``textures.py``, which shares no code with the
quickstart's products, so neither these products nor their defects were seen in training.

From a clone of the repository::

    python tools/train_backbone.py --output resnet10_synthetic.safetensors
"""

import logging
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from anomalib_uniad.synthetic.backbone import resnet10_synthetic
from textures import draw_texture_class, render_region, render_texture

logger = logging.getLogger(__name__)

RENDER_SIZE = 96
CROP_SIZE = 64


def _render_pool(classes: int, per_class: int, seed: int) -> Tensor:
    """Render all textures once, as uint8 of shape (classes, per_class, 3, RENDER_SIZE, RENDER_SIZE)."""
    pool = np.empty((classes, per_class, RENDER_SIZE, RENDER_SIZE, 3), np.uint8)
    for index in tqdm(range(classes), desc="Rendering textures", leave=False):
        parameters = draw_texture_class(index, seed)
        for number in range(per_class):
            pool[index, number] = render_texture(parameters, RENDER_SIZE, np.random.default_rng([seed, index, number]))
    return torch.from_numpy(pool).permute(0, 1, 4, 2, 3).contiguous()


def _random_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut one random window out of each image, shape (B, 3, CROP_SIZE, CROP_SIZE)."""
    tops, lefts = torch.randint(RENDER_SIZE - CROP_SIZE + 1, (2, len(images)), generator=generator).tolist()
    crops = [
        image[:, top : top + CROP_SIZE, left : left + CROP_SIZE]
        for image, top, left in zip(images, tops, lefts, strict=True)
    ]
    return torch.stack(crops).float() / 255


def _photometric(images: Tensor, generator: torch.Generator) -> Tensor:
    """Vary lighting direction, brightness, contrast, colour temperature, blur and sensor noise."""
    count = len(images)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.rand(count, channels, 1, 1, generator=generator) * (high - low) + low

    ramp = torch.linspace(-1, 1, CROP_SIZE)
    light = 1 + uniform(-0.25, 0.25) * ramp.view(1, 1, -1, 1) + uniform(-0.25, 0.25) * ramp.view(1, 1, 1, -1)
    images = images * light * uniform(0.8, 1.2) * uniform(0.94, 1.06, 3)
    images = (images - 0.5) * uniform(0.7, 1.2) + 0.5 + uniform(-0.08, 0.08)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    images = torch.lerp(images, blurred, uniform(-0.3, 1.0).clamp(min=0))
    images = images + torch.randn(images.shape, generator=generator) * uniform(0, 0.03)
    return images.clamp(0, 1)


class DenseClassifier(nn.Module):
    """Backbone with one linear texture classifier per feature map.

    Args:
        classes: Number of texture classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        backbone = resnet10_synthetic()
        self.backbone = backbone
        self.heads = nn.ModuleList(nn.Conv2d(count, classes, 1) for count in (32, 64, 128, 128))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return class logits at strides 4, 8, 16 and 32, (B, classes, H/s, W/s) each."""
        features = self.backbone.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)
        return [head(feature) for head, feature in zip(self.heads, features, strict=True)]


def _dense_loss(logits: list[Tensor], first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy at every position against the two classes, weighted by how much of the cell each fills."""
    loss = torch.zeros(())
    for stage in logits:
        height, width = stage.shape[-2:]
        share = F.adaptive_avg_pool2d(mask, (height, width))[:, 0]
        log_probability = stage.log_softmax(dim=1)
        index_first = first.view(-1, 1, 1, 1).expand(-1, 1, height, width)
        index_second = second.view(-1, 1, 1, 1).expand(-1, 1, height, width)
        of_first = log_probability.gather(1, index_first)[:, 0]
        of_second = log_probability.gather(1, index_second)[:, 0]
        loss = loss - ((1 - share) * of_first + share * of_second).mean()
    return loss


def train_backbone(
    output: Path,
    steps: int = 6000,
    batch_size: int = 64,
    classes: int = 288,
    images_per_class: int = 16,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.02,
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Train ``resnet10_synthetic`` on procedural textures and save its weights.

    Args:
        output: Where to write the weights (safetensors). The folder must exist.
        steps: Optimiser steps.
        batch_size: Images of 64x64 pixels per step.
        classes: Number of texture classes.
        images_per_class: Renderings per class; windows are cut out of them at random.
        learning_rate: Peak of the one-cycle schedule of AdamW.
        weight_decay: Weight decay of AdamW.
        seed: Seed of the textures, of the initialisation and of the order of the images.
        threads: CPU threads; a different number changes rounding and so the weights slightly.

    Raises:
        FileNotFoundError: If the folder of ``output`` does not exist.
    """
    if not output.absolute().parent.is_dir():
        msg = f"The folder of {output} does not exist"
        raise FileNotFoundError(msg)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = _render_pool(classes, images_per_class, seed)
    regions = np.stack([render_region(CROP_SIZE, np.random.default_rng([seed, 3, i])) for i in range(1024)])
    masks = torch.from_numpy(regions).unsqueeze(1)
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_DEFAULT_STD).view(1, 3, 1, 1)

    model = DenseClassifier(classes).train()
    # channels_last is about a third faster on CPUs and does not change the result.
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2), pct_start=0.1)
    running = 0.0
    for step in tqdm(range(steps), desc="Training backbone"):
        first, second = torch.randint(classes, (2, batch_size), generator=generator)
        picks = torch.randint(images_per_class, (2, batch_size), generator=generator)
        mask = masks[torch.randint(len(masks), (batch_size,), generator=generator)].float() / 255
        background = _random_crops(pool[first, picks[0]], generator)
        foreground = _random_crops(pool[second, picks[1]], generator)
        images = _photometric(torch.lerp(background, foreground, mask), generator)
        images = ((images - mean) / std).to(memory_format=torch.channels_last)

        loss = _dense_loss(model(images), first, second, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 250 == 0:
            logger.info("step %d: loss %.3f", step + 1, running)

    state = {name: value.contiguous() for name, value in model.backbone.state_dict().items()}
    save_file(state, output, metadata={"format": "pt", "seed": str(seed), "steps": str(steps)})
    logger.info("saved %s after a loss of %.3f", output, running)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    auto_cli(train_backbone, as_positional=False)
