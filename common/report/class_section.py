"""Class averages, each with its number of images and how far its halves agree."""

from __future__ import annotations

import torch

from common.report import pictures
from common.report.data import ClassAverages
from common.report.sections import number, picture, section


def show_classes(classes: ClassAverages) -> str:
    """A picture for each class, in a grey scale of its own."""
    total = int(classes.images.sum())
    bad = int(classes.rejected.sum())
    shown = []
    for k, average in enumerate(classes.averages):
        count = int(classes.images[k])
        caption = f"<b>{k + 1}</b> · {count:,} image{'' if count == 1 else 's'} ({100 * count / max(total, 1):.1f} %)"
        if bool(torch.isfinite(classes.correlation[k])):
            caption += f" · ring correlation {number(classes.correlation[k])}"
            if bool(torch.isfinite(classes.resolution[k])):
                caption += f", to {number(classes.resolution[k], 2, 'Å')}"
        if bool(classes.rejected[k]):
            caption += " · <b>rejected</b>"
        window = pictures.grey_window(average)
        shown.append(picture(average, window, classes.pixel_size, f"class average {k + 1}", caption))
    words = f"{len(classes.images)} classes of {total:,} images, the largest first, each in a grey scale of its own. "
    if bool(torch.isfinite(classes.correlation).any()):
        words += (
            "Ring correlation: mean over the band of the signal, between averages of two halves of the images that "
            "were classified without knowing of each other. "
            f"{bad} class{'' if bad == 1 else 'es'} no better than chance."
        )
    return section("classes", "Class averages", f"<p>{words}</p>", f'<div class="tiles">{"".join(shown)}</div>')
