# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests: two threads, no model hub, and anomalib imported once."""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

with warnings.catch_warnings():  # what other packages warn about while they are imported
    warnings.simplefilter("ignore")
    import anomalib.engine
    import anomalib.models  # noqa: F401
    import torch

torch.set_num_threads(2)
