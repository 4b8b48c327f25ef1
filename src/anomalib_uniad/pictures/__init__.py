# SPDX-License-Identifier: Apache-2.0
"""What is drawn while a model is trained, tested and predicts: callbacks that know no UniAD."""
