"""Any video or image file → frames."""
