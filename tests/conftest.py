# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests: one thread, no model hub, and anomalib imported once."""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

with warnings.catch_warnings():  # what other packages warn about while they are imported
    warnings.simplefilter("ignore")
    import anomalib.engine
    import anomalib.models  # noqa: F401
    import torch

# Threads that wait for each other cost more than these small models, most of all where other programs run.
torch.set_num_threads(1)
