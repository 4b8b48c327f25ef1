# SPDX-License-Identifier: Apache-2.0
"""Pictures of industrial products, good and defective, painted by formulas.

Six categories: three objects and assemblies with a fixed layout and a jittered pose, a turned part, and two
textures. Everything comes from :class:`numpy.random.Generator`, so equal seeds give equal bytes.

Examples:
    >>> import numpy as np
    >>> from anomalib_uniad.synthetic import PRODUCTS
    >>> image, mask = PRODUCTS["washer"].render(np.random.default_rng(0), defect="rust")
    >>> image.shape, mask.shape, bool(mask.any())
    ((192, 192, 3), (192, 192), True)
"""

from importlib import import_module

from anomalib_uniad.synthetic.assemblies import Blister, CircuitBoard
from anomalib_uniad.synthetic.metal import BottleCap, Washer
from anomalib_uniad.synthetic.product import Product
from anomalib_uniad.synthetic.surfaces import Fabric, Oak

PRODUCTS: dict[str, Product] = {
    product.name: product for product in (Blister(), BottleCap(), CircuitBoard(), Fabric(), Oak(), Washer())
}

__all__ = ["PRODUCTS", "Product"]

# anomalib.data loads its plugins at the end of its own import, the datamodule of this package among them. So it has
# to be imported before that module, which would otherwise be found half executed.
import_module("anomalib.data")
