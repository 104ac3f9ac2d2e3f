# SPDX-License-Identifier: Apache-2.0
"""Generated from protos/ by scripts/protos or the package build; only this line is written."""
