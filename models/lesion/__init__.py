"""The MS-lesion generator: filled scans + lesion masks with intensities -> scans with lesions."""
