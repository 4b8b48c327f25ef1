# SPDX-License-Identifier: Apache-2.0
"""Models x data x mode x seeds: trainings that are measured, each in a process and folder of its own."""
