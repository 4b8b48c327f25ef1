# SPDX-License-Identifier: Apache-2.0
"""Results of several runs side by side. Imports neither torch nor anomalib."""
