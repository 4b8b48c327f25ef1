# SPDX-License-Identifier: Apache-2.0
"""Whether exported files give the results of the torch model, and how fast."""
