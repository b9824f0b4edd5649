"""The MS-lesion generator: filled scans + lesion masks with intensities -> scans with lesions."""

from models.lesion.method import LesionUnet

__all__ = ["LesionUnet"]
