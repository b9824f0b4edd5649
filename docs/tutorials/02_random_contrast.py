"""What can be turned: ``python docs/tutorials/02_random_contrast.py MAPS picture.png``; MAPS is a file or a folder."""

import json
import sys
from pathlib import Path

import matplotlib
import nibabel as nib
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
matplotlib.use("Agg")
import matplotlib.pyplot as plt

from models.gmm import ImageGenerator, Params

maps, picture = sys.argv[1:3]
SEED = 5  # the same for all: turning one knob leaves the draws of all other steps as they were
shown = {}
for preset in ("lab2im", "synthseg", "cornucopia", "fetal"):
    shown[preset] = ImageGenerator(maps, preset=preset, seed=SEED).sample(0)

plain = {"preset": "synthseg", "seed": SEED, "bias_field_std": 0, "gamma_std": 0, "randomise_res": False}
generator = ImageGenerator(maps, **plain)
shown["synthseg, plain"] = first = generator.sample(0)
shown["bias field"] = ImageGenerator(maps, **plain | {"bias_field_std": [0.8, 0.8]}).sample(0)
shown["slices of 6 mm"] = ImageGenerator(maps, **plain | {"data_res": [1, 1, 6]}).sample(0)

# A part of the parameters can be given and the rest drawn; everything drawn can be kept and used again.
shown["gamma exp(0.8)"] = generator.sample(0, fixed={"gamma": torch.tensor([0.8])})
shown["plain's contrast, sample 1"] = generator.sample(
    1, fixed={"means": first.params.means, "stds": first.params.stds}
)
kept = Params.from_dict(json.loads(json.dumps(first.params.to_dict())))
shown["plain, replayed"] = generator.replay(first.source, kept)
assert (shown["plain, replayed"].image == first.image).all()

figure, axes = plt.subplots(2, 5, figsize=(15, 6.6), layout="constrained")
for ax, (title, sample) in zip(axes.flat, shown.items(), strict=True):
    volume = nib.as_closest_canonical(nib.Nifti1Image(sample.image, sample.affine)).get_fdata()
    ax.imshow(volume[volume.shape[0] * 9 // 20].T, cmap="gray", origin="lower")
    ax.set_title(title)
    ax.axis("off")
figure.savefig(picture, dpi=80)
