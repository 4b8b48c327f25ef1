# SPDX-License-Identifier: Apache-2.0
"""Whether scores of a production have moved away from those of the calibration: no torch."""
