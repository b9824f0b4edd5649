"""A given contrast: ``python docs/tutorials/03_t1_like.py MAPS picture.png [SYNTHSEG_PRIORS | IMAGE.nii.gz MAP.nii.gz]``.

SYNTHSEG_PRIORS: folder with SynthSeg's generation_labels, generation_classes_contrast_specific, prior_means_t1 and
prior_stds_t1 (.npy). IMAGE and its label MAP: priors are estimated from them. With neither, an image made here stands in.
"""

import sys
from pathlib import Path

import matplotlib
import nibabel as nib

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
matplotlib.use("Agg")
import matplotlib.pyplot as plt

from models.gmm import ImageGenerator
from scripts.estimate_priors import PriorOptions, estimate_priors

maps, picture, *given = sys.argv[1:]
output = Path(picture)
mild = {"preset": "synthseg", "seed": 1, "bias_field_std": 0.3, "gamma_std": 0.1, "randomise_res": False}

if len(given) == 1:  # tables, as lab2im and SynthSeg use them: one column per class, rows mean and standard deviation
    folder = Path(given[0])
    mild |= {"prior_means": folder / "prior_means_t1.npy", "prior_stds": folder / "prior_stds_t1.npy"}
    mild |= {"generation_classes": folder / "generation_classes_contrast_specific.npy", "n_neutral_labels": 18}
    mild |= {"generation_labels": folder / "generation_labels.npy", "prior_distributions": "normal"}
else:
    if not given:
        given = [str(output.with_suffix(".nii.gz")), str(output.with_suffix(".labels.nii.gz"))]
        ImageGenerator(maps, **mild).sample(0).save(*given)
    files = {"images": given[0], "labels": given[1], "out": output.with_suffix(".json")}
    found = estimate_priors(PriorOptions(**files, percentiles=(0.0, 99.9)))
    print(found.table(), *found.notes, sep="\n")
    mild |= {"priors": output.with_suffix(".json")}

generator = ImageGenerator(maps, **mild)
figure, axes = plt.subplots(1, 4, figsize=(14, 4), layout="constrained")
for number, ax in enumerate(axes):
    sample = generator.sample(number)
    volume = nib.as_closest_canonical(nib.Nifti1Image(sample.image, sample.affine)).get_fdata()
    ax.imshow(volume[volume.shape[0] * 9 // 20].T, cmap="gray", origin="lower")
    ax.set_title(f"sample {number}")
    ax.axis("off")
figure.savefig(picture, dpi=80)
