"""Static calibration of a model into the integer model: reading, watching, choosing scales, converting."""
