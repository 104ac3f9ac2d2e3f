# SPDX-License-Identifier: Apache-2.0
"""Mount an image's files as a volume: an overlay without an upper folder, or a part of one.

Not a bind of a layer's folder, even where there is one layer only: whoever may remount a bind
could write to the layer, which other containers share; to such an overlay nobody can.
"""

import os

from pycri.kernel import mounts
from pycri.kernel.paths import open_beneath
from pycri.model.plan import MountImage
from pycri.spawner.targets import open_target


def open_image(step: MountImage, *, append: bool) -> int:
    """Make the overlay. append: as in `steps.open_sources`. Returns a detached mount."""
    layers = step.layers if len(step.layers) > 1 else (*step.layers, step.empty)
    if append:
        tree = mounts.new_overlay(layers, label=step.label)
    else:
        tree = mounts.new_overlay_by_path(layers, "", "", step.empty, step.label)
    mounts.set_attributes(tree, step.attributes)
    return tree


def attach_image(root_fd: int, tree: int, step: MountImage) -> None:
    """Attach the image, or the part of it, at the target; takes `tree`."""
    try:
        part = _cut(root_fd, tree, step) if step.sub_path else os.dup(tree)
        try:
            target = open_target(root_fd, step.target, part)
            try:
                mounts.attach(part, target)
            finally:
                os.close(target)
        finally:
            os.close(part)
    finally:
        os.close(tree)


def _cut(root_fd: int, tree: int, step: MountImage) -> int:
    """Return a detached mount of what the sub path leads to inside the image.

    Only what is attached can be cloned (open_tree(2), until Linux 6.15), so for a moment the
    image lies on the container's root, where nothing runs yet.
    """
    mounts.attach(tree, root_fd)
    try:
        found = open_beneath(tree, step.sub_path, os.O_PATH)
        try:
            return mounts.clone_fd(found)
        finally:
            os.close(found)
    finally:
        mounts.detach(tree)
