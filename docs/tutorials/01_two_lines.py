"""An image of random contrast in two lines: ``python docs/tutorials/01_two_lines.py MAP.nii.gz picture.png``."""

import sys
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
matplotlib.use("Agg")
import matplotlib.pyplot as plt

from models.gmm import ImageGenerator

map_file, picture = sys.argv[1:3]

# The two lines. Labels, sides and classes are found in the map; the image has its axes, voxel size and affine.
generator = ImageGenerator(map_file)
image, labels = generator.generate_image()

# Whatever was drawn can be had again: by number and seed, here with the affine and all parameters.
sample = generator.sample(0)
assert (sample.image == image).all()
print(f"seed {generator.seed}; {sample.image.shape}, {len(generator.scheme.values)} labels")
sample.save(Path(picture).with_suffix(".nii.gz"), Path(picture).with_suffix(".labels.nii.gz"))

source = np.asarray(nib.load(map_file).dataobj)
values = sorted(generator.scheme.values)  # shown by their order: FreeSurfer's ids are far apart
middle = image.shape[2] // 2
figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained")
for ax, array in zip(axes, (source, labels), strict=False):
    ax.imshow(np.searchsorted(values, array[:, :, middle].T), cmap="nipy_spectral")
axes[2].imshow(image[:, :, middle].T, cmap="gray")
for ax, title in zip(axes, ("label map", "deformed labels", "synthetic image"), strict=True):
    ax.set_title(title)
    ax.axis("off")
figure.savefig(picture, dpi=80)
