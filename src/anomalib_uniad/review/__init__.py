# SPDX-License-Identifier: Apache-2.0
"""Thresholds by looking at images: a page to label them and to move thresholds, and new ones from labelled images."""
