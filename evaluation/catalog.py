"""Every metric: its key, level, unit, direction, and why it may have no value."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.metrics.feature_sets import INCEPTION, RADIOMICS, names
from evaluation.metrics.msssim import LARGEST_REFUSED
from evaluation.statistics import DRAWS, MIN_PATIENTS

SCHEMA = "medsis-metrics/1"
LPIPS = "lpips_alex_v0.1"
LPIPS_SMALLEST = 31  # pixels a side that AlexNet's two poolings leave something of
OASIS_FID = "oasis_fid"
PAIRED = ("mae", "rmse", "mae_body", "rmse_body", "psnr", "ssim", "ms_ssim")
BY_LABEL = ("label_mean_error", "label_std_error", "wasserstein")
BY_CASE = ("ssim_3d", "slice_jump_ratio", "slice_difference_mae", "spectrum_distance", "edge_sharpness_ratio")
SYNTHRAD = ("synthrad2023_mae", "synthrad2023_psnr", "synthrad2023_ssim")  # by case, with --protocol
DIVERSITY = ("diversity_ssim", "diversity_ms_ssim", "diversity_lpips")  # by slice, with --draws
LABEL_SPREAD = "diversity_label_spread"  # by case, with --draws
FAITHFULNESS = ("faithfulness_dice", "faithfulness_hd95")  # by case, with --segmented
LESION_CHANGE = "lesion_change_outside"  # by case, with --lesion
LESIONS = ("lesion_f1", "lesion_precision", "lesion_recall")  # by patient, with --lesion and --segmented
LESION_VOLUMES = "lesion_volume_correlation"  # over cases, with --lesion and --segmented
NETWORK = dict.fromkeys(names(INCEPTION), "inception") | {LPIPS: "alexnet"}  # metric -> weights
ALWAYS = (*PAIRED, *BY_LABEL, *BY_CASE, *names(RADIOMICS), *NETWORK)  # what `auto` tries
PROTOCOLS = {"synthrad2023": SYNTHRAD, "oasis": (OASIS_FID,)}

HIGHER_IS_BETTER = {
    *("psnr", "ssim", "ms_ssim", "ssim_3d", "synthrad2023_psnr", "synthrad2023_ssim", "faithfulness_dice"),
    *LESIONS,
    LESION_VOLUMES,
}
NO_DIRECTION = {
    "slice_jump_ratio",
    "edge_sharpness_ratio",
    *DIVERSITY,
    LABEL_SPREAD,
}  # neither higher nor lower is better
UNITS = {  # other than the channel's
    **dict.fromkeys(("psnr", "synthrad2023_psnr"), "dB"),
    **dict.fromkeys(("ssim", "ms_ssim", "ssim_3d", "synthrad2023_ssim", LPIPS, OASIS_FID, *DIVERSITY), ""),
    **dict.fromkeys(("slice_jump_ratio", "spectrum_distance", "edge_sharpness_ratio"), ""),
    **dict.fromkeys(("faithfulness_dice", *LESIONS, LESION_VOLUMES), ""),
    "faithfulness_hd95": "mm",  # pixels where spacing is unknown
}
WINDOWED = {  # depend on the window
    *("psnr", "ssim", "ms_ssim", "ssim_3d", "wasserstein", LPIPS, *DIVERSITY),
}
REASONS = {  # why a metric may have no value
    "psnr": "identical images everywhere",
    "synthrad2023_psnr": "identical volumes everywhere, or no body mask, or gaps between the slices",
    "ms_ssim": f"slices need sides of more than {LARGEST_REFUSED} pixels",
    "diversity_ms_ssim": f"slices need sides of more than {LARGEST_REFUSED} pixels",
    "ssim": "slices need sides of at least 11 pixels",
    "diversity_ssim": "slices need sides of at least 11 pixels",
    LPIPS: f"slices need sides of at least {LPIPS_SMALLEST} pixels",
    "diversity_lpips": f"slices need sides of at least {LPIPS_SMALLEST} pixels",
    "spectrum_distance": "slices need sides of at least 8 pixels",
    **dict.fromkeys(("mae_body", "rmse_body"), "no pixel with a label other than 0"),
    "ssim_3d": "needs 11 adjacent slices of at least 11 x 11 pixels",
    "synthrad2023_mae": "needs 7 slices or more without a gap, and a body mask",
    "synthrad2023_ssim": "needs 7 slices or more without a gap, and a body mask",
    "edge_sharpness_ratio": "no borders between labels, or the real images are flat there",
    "slice_jump_ratio": "no adjacent slices that share body pixels, or the real ones do not change",
    "slice_difference_mae": "no adjacent slices that share body pixels",
    "faithfulness_hd95": "no label that is in both maps",
    LESION_CHANGE: "no case with pixels outside of lesions",
    LESION_VOLUMES: "needs three cases with volumes that differ",
    **dict.fromkeys(LESIONS, "no lesion in any map"),
}
SETTINGS = {
    "levels": "mean over a patient's slices, then over patients; by label: over a patient's cases, labels, patients; "
    "by case: over a patient's cases, patients",
    "interval": f"95 % percentile bootstrap over patients, {DRAWS} draws, seed 0, from {MIN_PATIENTS} patients on",
    "body": "pixels with a label other than 0; where label maps mark a lesion only, that is the lesion",
    "by label": "means and standard deviations of the stored values; wasserstein on the window's 65536 levels",
    "slices": "of volumes: without a label and with a constant real image they count for volumes and segmentations only",
    "psnr": "data range = window width; per image, then mean; identical images counted, not averaged",
    "ssim": "2-D, on intensity minus window low, data range = window width, Gaussian 11x11 sigma 1.5, K1 0.01, K2 0.03",
    "ms_ssim": "2-D, five scales, weights of Wang et al. 2003, as ssim otherwise",
    "ssim_3d": "as ssim with a Gaussian of 11x11x11 voxels, on runs of adjacent slices, weighted by their length; by case",
    "spectrum_distance": "radial power of slices under a Hann window, mean |log10 ratio| over 64 bins to Nyquist, by case",
    "edge_sharpness_ratio": "mean gradient at borders between labels, generated over real, sums over a case",
    "slice_jump_ratio": "pairs of slices whose indices differ by 1, pixels that are body in both, sums over a case",
    "slice_difference_mae": "the same pairs and pixels, mean over a case's pixels",
    "fid": "pytorch-fid's Inception, 2048 features, window to [0, 1], three equal channels, its own resize to 299; "
    "kid, precision, recall, density and coverage on the same features",
    "kid": "kernel (x·y/d + 1)³, unbiased, mean over 100 subsets of min(1000, n), seed 0",
    "precision, recall": "3 neighbours; density, coverage: 5",
    "floor": "the same metric between two halves of the real slices, split by patient",
    "radiomics": "53 weight-free features of each slice within the body, standardised by the real set; not FRD",
    LPIPS: "lpips 0.1 heads, torchvision's AlexNet, window to [-1, 1], three equal channels",
}
EXTRA_SETTINGS = {  # of what is only measured on request
    **dict.fromkeys(SYNTHRAD, "SynthRAD2023: body mask, [-1024, 3000] HU; all slices of a case as one volume"),
    OASIS_FID: "FID of the images as 8-bit files, as `python -m pytorch_fid` reads and prints it",
    **dict.fromkeys(DIVERSITY, "mean over all pairs of draws of a label map"),
    LABEL_SPREAD: "standard deviation over draws of a label's mean, by case, mean over labels",
    "faithfulness_dice": "segmented generated image against the conditioning label; over cases, then labels; "
    "ceiling: segmented real image against the same label",
    "faithfulness_hd95": "as faithfulness_dice; cases where a label is in one map only are counted in `missed`",
    LESION_CHANGE: "mean |generated - real| more than 2 pixels away from the lesion label",
    "lesion_f1": "components (faces, edges, corners) of the lesion label against those segmented in the generated image; "
    "a shared voxel is a match; counts pooled over a patient's cases",
}


def parse_metrics(metrics: str | Sequence[str], allowed: Sequence[str] = ALWAYS) -> tuple[str, ...] | None:
    """Names of a comma-separated list (``lpips`` for its full name); None for auto. ValueError lists what there is."""
    if metrics == "auto":
        return None
    given = metrics.split(",") if isinstance(metrics, str) else list(metrics)
    given = [LPIPS if name.strip() == "lpips" else name.strip() for name in given]
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise ValueError(f"--metrics {','.join(unknown)}: unknown; there are auto, {', '.join(allowed)}")
    return tuple(given)
