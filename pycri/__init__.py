# SPDX-License-Identifier: Apache-2.0
"""pycri, a container runtime for Kubernetes nodes."""

__version__ = "0.1.0"
