# SPDX-License-Identifier: Apache-2.0
"""The order of the house: imports point one way, between rooms and inside them."""
