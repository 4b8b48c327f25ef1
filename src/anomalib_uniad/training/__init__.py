# SPDX-License-Identifier: Apache-2.0
"""What happens around the training step: cached features, learning-rate schedules, exact resumption."""
