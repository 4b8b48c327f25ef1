# SPDX-License-Identifier: Apache-2.0
"""Three categories of small images, one of them of another size."""

import pytest

from helpers import make_mvtec_like


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_mvtec_like(
        tmp_path_factory.mktemp("x") / "products", ["bottle", "my_part", "cable"], {"cable": (48, 80)}
    )
