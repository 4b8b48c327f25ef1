# SPDX-License-Identifier: Apache-2.0
"""Looks at images before a model is trained on them: what is there, and what is wrong with it."""
