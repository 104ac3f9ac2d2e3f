# SPDX-License-Identifier: Apache-2.0
"""The label that a node's own files need before confined processes may read them."""

import os

from pycri.kernel import lsm
from pycri.logs import Log
from pycri.plan.selinux import IMAGES_LABEL

_log = Log("selinux")


def label_images(folder: str) -> None:
    """Label the images' folder, made where it is missing: layers unpacked below inherit it."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        lsm.set_file_label(folder, IMAGES_LABEL)
    except OSError as error:
        # A policy that does not know the type: containers without a label work all the same.
        _log.error("files of images keep the folder's label", error=str(error))
