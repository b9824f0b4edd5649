"""MS lesions: filling them, choosing and placing them, painting them into scans."""
