"""What metrics are called and how they are grouped. A key that is not listed here still gets a name and a group."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.compare import Row

NAMES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mae_body": "MAE in the body",
    "rmse_body": "RMSE in the body",
    "psnr": "PSNR",
    "psnr_body": "PSNR in the body",
    "ssim": "SSIM",
    "ssim_3d": "3-D SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips_alex_v0.1": "LPIPS",
    "label_mean_error": "Label mean error",
    "label_std_error": "Label spread error",
    "wasserstein": "Label Wasserstein",
    "slice_jump_ratio": "Slice jump relative to real",
    "slice_difference_mae": "Slice jump error",
    "spectrum_distance": "Spectrum distance",
    "edge_sharpness_ratio": "Edge sharpness relative to real",
    "fid": "FID",
    "frechet": "Fréchet distance",
    "kid": "KID",
    "faithfulness_dice": "Label Dice seen by a segmenter",
    "faithfulness_hd95": "Label HD95 seen by a segmenter",
    "lesion_f1": "Lesion-wise F1",
    "lesion_precision": "Lesion-wise precision",
    "lesion_recall": "Lesion-wise recall",
    "lesion_volume_correlation": "Lesion volume correlation",
    "lesion_change_outside": "Change outside lesions",
    "diversity_ssim": "SSIM between draws",
    "diversity_ms_ssim": "MS-SSIM between draws",
    "diversity_lpips": "LPIPS between draws",
    "diversity_label_spread": "Label mean, spread over draws",
    "oasis_fid": "FID of 8-bit files",
}
WORDS = {  # of keys that have no name, where capitals or accents are customary
    "mae": "MAE",
    "rmse": "RMSE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms": "MS",
    "lpips": "LPIPS",
    "fid": "FID",
    "kid": "KID",
    "frechet": "Fréchet",
    "dice": "Dice",
    "hd95": "HD95",
    "f1": "F1",
    "std": "spread",
    "synthrad2023": "SynthRAD2023",
    "oasis": "OASIS",
}
DISTRIBUTION = ("fid", "frechet", "kid", "precision", "recall", "density", "coverage")
# KID is, as FID, the name for Inception's features only.
OF_FEATURES = {"frechet": "Fréchet distance", "kid": "kernel distance"}
GROUPS: dict[str, tuple[str, ...]] = {  # title -> keys, or beginnings of keys that end in "_"
    "Agreement with the real image": (
        *("mae", "rmse", "mae_body", "rmse_body", "psnr", "psnr_body", "ssim", "ssim_3d", "ms_ssim"),
        *("lpips", "lpips_", "dists", "dists_"),
    ),
    "Intensities within the labels": ("label_", "wasserstein"),
    "Texture, borders and continuity": ("spectrum_", "edge_", "slice_"),
    "Label faithfulness": ("faithfulness_",),
    "Lesions": ("lesion_", "lesions_"),
    "Variety of draws": ("diversity_",),
    "Protocol synthrad2023": ("synthrad2023_",),
    "Protocol oasis": ("oasis_",),
    "Distribution: Inception features": DISTRIBUTION,
}
OTHER = "Other"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
RATIO_NOTE = "1 is as in the real images"


def name_of(metric: str) -> str:
    """Name for people of a metric without its channel: ``MAE in the body``, ``Diversity LPIPS``."""
    if metric in NAMES:
        return NAMES[metric]
    if metric in DISTRIBUTION:
        return metric.capitalize()
    family, kind = of_features(metric)
    if family:
        return f"{family[:1].upper()}{family[1:].replace('_', ' ')} {OF_FEATURES.get(kind, kind)}"
    words = [WORDS.get(word, word) for word in metric.split("_")]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def of_features(metric: str) -> tuple[str, str]:
    """(extractor, kind) of a distribution metric on other features than Inception's; two empty strings else."""
    family, _, kind = metric.rpartition("_")
    return (family, kind) if family and kind in DISTRIBUTION else ("", "")


def group_of(metric: str) -> str:
    """Title of the table that a metric belongs to."""
    for title, keys in GROUPS.items():
        if metric in keys or any(key.endswith("_") and metric.startswith(key) for key in keys):
            return title
    family, _ = of_features(metric)
    if family:
        return f"Distribution: {family.replace('_', ' ')} features"
    return OTHER


def is_distribution(metric: str) -> bool:
    """Whether a metric compares two sets of images, so that it has a floor and no value per patient."""
    return group_of(metric).startswith("Distribution")


def metric_name(row: Row) -> str:
    """Name for people, with the channel where there is one."""
    return name_of(row.metric) + (f" ({row.channel})" if row.channel else "")


def grouped(rows: Sequence[Row]) -> dict[tuple[str | None, str], list[Row]]:
    """(channel, group title) -> rows; channels in the rows' order, groups in the order above, the rest behind."""
    order = [*GROUPS]
    found: dict[tuple[str | None, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.channel, group_of(row.metric)), []).append(row)
    channels = list(dict.fromkeys(row.channel for row in rows))

    def place(key: tuple[str | None, str]) -> tuple[int, int, str]:
        channel, title = key
        known = order.index(title) if title in order else len(order) + (title == OTHER)
        return channels.index(channel), known, title

    return {key: found[key] for key in sorted(found, key=place)}


def decimals(values: Sequence[float | None], digits: int = 4) -> int:
    """Decimals that show `digits` significant ones of the largest value, so that a column lines up; -1 for powers of ten."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if largest == 0:
        return 0
    places = digits - 1 - int(f"{largest:e}".partition("e")[2])
    return -1 if places > 7 or largest >= 1e6 else max(0, places)


def number(value: float, places: int) -> str:
    """`value` with so many decimals (see `decimals`) and a true minus sign."""
    if places < 0:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return "0" if value == 0 else f"{mantissa}×10{raised(int(exponent))}".replace("-", "−")
    text = f"{value:.{places}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def raised(exponent: int) -> str:
    """A whole number as superscript."""
    return str(exponent).translate(_RAISED)


def row_decimals(row: Row) -> int:
    """Decimals for all that is printed of a metric: values, intervals, floors."""
    ends = [end for entry in row.entries for end in ((entry or {}).get("ci95") or ())]
    references = [row.reference(i, what) for i in range(len(row.entries)) for what in ("floor", "ceiling")]
    return decimals([*row.values, *ends, *references])


def short_name(row: Row) -> str:
    """Name within the table of its group, which names the features of a distribution metric already."""
    _, kind = of_features(row.metric)
    short = OF_FEATURES.get(kind, kind)
    return short[:1].upper() + short[1:] if kind and is_distribution(row.metric) else name_of(row.metric)


def p_text(p: float | None) -> str:
    """``p = 0.031`` as papers print it."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def joined(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
