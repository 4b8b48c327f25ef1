# SPDX-License-Identifier: Apache-2.0
"""Feature cache, resume, checkpoint selection, optimizer: for any Lightning module with a backbone."""
