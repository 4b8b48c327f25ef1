# SPDX-License-Identifier: Apache-2.0
"""What the model sees: images rendered from its features, beside its maps."""
