"""Adversarial methods: OASIS and SPADE, in the image and in the wavelet domain."""
